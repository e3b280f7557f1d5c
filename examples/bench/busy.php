<?php
// Some milliseconds of work, as a page that renders something has.
$s = '';
for ($i = 0; $i < 20000; $i++) {
	$s = md5($s);
}
echo "$s\n";
