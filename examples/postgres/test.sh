#!/bin/sh
set -eu
cd "$(dirname "$0")"
# shellcheck source=examples/lib.sh
. ../lib.sh

sql() { compose run --rm --no-deps -T psql psql -qAtc "$1" 2>"$log"; }
sql_is() { [ "$(sql "$1")" = "$2" ]; }

quietly compose build
say "the README's command"
equal 'psql' "$(eval "$(readme_command)" 2>"$log" | tr -d '\r' | sed '/^$/d')" "$(readme_output)"
equal 'the socket' "$(compose exec -T db stat -c '%A %u:%g' /var/run/postgresql/.s.PGSQL.5432)" 'srwxrwx--- 10001:10000'
equal 'the data' "$(compose exec -T db stat -c '%A %u:%g' /var/lib/postgresql/data)" 'drwx------ 10001:10000'
equal 'TCP sockets' "$(compose exec -T db cat /proc/net/tcp /proc/net/tcp6 | grep -c :)" 0

say 'the kernel says who connects'
contains 'app as db' "$(one_off psql psql -U db postgres)" 'Peer authentication failed for user "db"'
contains 'uid 10003 as app' "$(user=10003:10000 one_off psql psql -U app)" 'Peer authentication failed for user "app"'
contains 'another group' "$(user=10003:10003 one_off psql psql -U app)" 'Permission denied'

say 'restarted, and killed in the middle of a transaction: what was committed is there'
sql 'CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)'
quietly compose restart db
eventually sql_is 'SELECT sum(n) FROM kept' 1
sql 'INSERT INTO kept VALUES (2)'
compose exec -T db sh -c 'psql -q app -c "BEGIN; INSERT INTO kept VALUES (4); SELECT pg_sleep(100)"' >/dev/null 2>&1 &
writing() { [ "$(compose exec -T db psql -qAtc "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'" postgres)" = 1 ]; }
eventually writing
quietly compose kill -s KILL db
wait
quietly compose run --rm --no-deps -T psql test -S /var/run/postgresql/.s.PGSQL.5432 || fail 'no socket is left behind'
quietly compose start db
eventually sql_is 'SELECT sum(n) FROM kept' 3

say 'a second server gets neither the socket nor the data'
contains 'a second one' "$(one_off db)" 'another PostgreSQL serves this socket or this data'
equal 'the first one' "$(sql 'SELECT sum(n) FROM kept')" 3
