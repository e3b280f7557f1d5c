<?php echo "Hello.\n";
