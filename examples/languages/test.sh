#!/bin/sh
set -eu
cd "$(dirname "$0")"
# shellcheck source=examples/lib.sh
. ../lib.sh

# errors WHAT COLUMN PROGRAM SOCKET: each language fails, with the error in this
# column of the README's table.
errors() {
	got=$(one_off "$3" sh each.sh "$3" "/run/uds/$4" /)
	contains "$1, $3" "$got" 'failed: 1 1 1 1 '
	for row in Python Node.js Java C; do
		[ "$row $3" != 'C fetch' ] || row=curl
		contains "$1, $3 in $row" "$got" "$(sed -n "/^Errors/,\$s/^| ${row}[^|]*|//p" README.md | cut -d '|' -f "$2" | cut -d '`' -f 2)"
	done
}

quietly compose build
say "the README's commands"
equal 'the echoes' "$(eval "$(readme_command)" 2>"$log" | tr -d '\r')" "$(readme_output)"
page=$(compose run --rm --no-deps -T fetch 2>"$log")
equal 'the pages' "$(echo "$page" | grep -c -e '^/metrics  for Prometheus' -e '/status   JSON$')" 10
contains 'a page that is not there' "$(one_off fetch sh each.sh fetch /run/uds/admin /nothing)" 'failed: 1 1 1 1 22'

say 'each error, in each language'
user=10003:10003 errors 'another group' 1 echo uds_socket
user=10003:10003 errors 'another group' 1 fetch admin
errors 'no server' 2 echo none
errors 'no server' 2 fetch none
quietly compose kill -s KILL server
errors 'a killed server' 3 echo uds_socket
errors 'a killed server' 3 fetch admin

say 'a server that started again is found'
quietly compose start server
back() { [ "$(compose run --rm --no-deps -T echo 2>"$log")" = "$(readme_output)" ]; }
eventually back
