#!/bin/sh
# Does the socket matter? A PHP page and a SELECT 1, through the socket and through
# TCP on a bridge, with the same containers: the median of some rounds, which
# interleave the two, with its range. `make bench-examples` calls it.
#
#     ROUNDS=7 SECONDS_EACH=5 make bench-examples
set -eu
cd "$(dirname "$0")"
rounds=${ROUNDS:-15}
seconds=${SECONDS_EACH:-1}
../../tools/offline/base.sh -q --debian
# shellcheck source=examples/lib.sh
. ../lib.sh

say 'building and starting'
quietly compose build
quietly compose up -d
one_page() { [ "$(compose exec -T php sh -c "SCRIPT_FILENAME=/bench/hello.php REQUEST_METHOD=GET cgi-fcgi -bind -connect $1" 2>"$log" | tail -n 1)" = Hello. ]; }
eventually one_page /run/php/fpm.sock
eventually one_page 127.0.0.1:9000
one_query() { [ "$(compose exec -T pgbench psql -h "$1" -qAtc 'SELECT 1' app 2>"$log")" = 1 ]; }
eventually one_query /var/run/postgresql
eventually one_query db

# page PORT FILE and query HOST CLIENTS print requests a second and p99 in ms.
page() {
	compose exec -T wrk wrk --latency -t 1 -c 4 -d "${seconds}s" "http://web:$1/$2" >"$log" 2>&1
	if grep -q 'Non-2xx\|Socket errors' "$log"; then cat "$log"; fail "pages of $2 failed"; fi
	awk '/99%/ { p = $2; p = p ~ /us$/ ? p / 1000 : p ~ /ms$/ ? p + 0 : p * 1000 } /^Requests\/sec/ { r = $2 } END { print r, p }' "$log"
}
query() {
	compose exec -T pgbench sh -c "rm -f /tmp/log.*
		pgbench -n -f /bench/select1.sql -h $1 -c $2 -j 2 -T $seconds -l --log-prefix=/tmp/log app
		cut -d ' ' -f 3 /tmp/log.* | sort -n | awk '{ v[NR] = \$1 } END { print \"p99\", v[int(NR * 0.99)] / 1000 }'" >"$log" 2>&1
	awk '/^tps/ { r = $3 } /^p99/ { p = $2 } END { print r, p }' "$log"
}
measure() { # measure WORK WAY
	case $1-$2 in
	hello-socket) page 8001 hello.php ;;
	hello-tcp) page 8002 hello.php ;;
	busy-socket) page 8001 busy.php ;;
	busy-tcp) page 8002 busy.php ;;
	select-1-socket) query /var/run/postgresql 1 ;;
	select-1-tcp) query db 1 ;;
	select-4-socket) query /var/run/postgresql 4 ;;
	select-4-tcp) query db 4 ;;
	esac
}

results=$work/results # lines of WORK, rate and p99 through the socket, rate and p99 through TCP
round=0
while [ $((round += 1)) -le "$rounds" ]; do
	say "round $round of $rounds"
	for what in hello busy select-1 select-4; do
		if [ $((round % 2)) -eq 1 ]; then
			socket=$(measure $what socket)
			tcp=$(measure $what tcp)
		else
			tcp=$(measure $what tcp)
			socket=$(measure $what socket)
		fi
		echo "$what $socket $tcp" | tee -a "$results"
	done
done

# column WORK EXPRESSION FORMAT: its median and range over the rounds.
column() {
	awk -v what="$1" "\$1 == what { print $2 }" "$results" | sort -g |
		awk -v f="$3" '{ v[NR] = $1 } END { printf f " [" f "-" f "]", v[int((NR + 1) / 2)], v[1], v[NR] }'
}
echo
echo '| work | socket, per second | TCP, per second | ratio | p99 socket, ms | p99 TCP, ms | ratio of p99 |'
echo '|---|---|---|---|---|---|---|'
# shellcheck disable=SC2016 # awk's
for what in hello busy select-1 select-4; do
	echo "| $what | $(column $what '$2' %.0f) | $(column $what '$4' %.0f) | **$(column $what '$2 / $4' %.2f)** | $(column $what '$3' %.2f) | $(column $what '$5' %.2f) | $(column $what '$3 / $5' %.2f) |"
done
