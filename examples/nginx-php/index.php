<?php
header('Content-Type: text/plain');
echo getenv('GREETING') . "\n";
echo 'user ' . posix_geteuid() . ', group ' . posix_getegid() . "\n";
echo 'network interfaces: ' . implode(' ', array_keys(net_get_interfaces())) . "\n";
