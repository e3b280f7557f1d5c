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

say 'uds wait as health check and entrypoint, as docs/debugging.md shows'
block() { sed -n "/<!-- test: $1 -->/,/^\`\`\`\$/p" ../../docs/debugging.md | sed '1,2d; $d'; }
wait_image=$COMPOSE_PROJECT_NAME-wait
image=$(docker inspect -f '{{.Image}}' "$(container db)")
quietly ../../tools/images.sh
block 'wait image' | sed "s/^FROM .*/FROM $image/" | quietly docker build -t "$wait_image" -
block 'wait compose' | sed "s/my-postgres/$wait_image/" >"$work/wait.yaml"
waiting() { compose -f compose.yaml -f "$work/wait.yaml" "$@"; }
quietly compose rm -fs db
waiting run --rm --no-deps -T psql >"$work/early" 2>"$log" &
early=$!
eventually sh -c "docker ps --format '{{.Image}} {{.Command}}' --no-trunc | grep -q '^$wait_image \"/uds wait '"
contains 'psql after db is healthy' "$(waiting run --rm -T psql 2>"$log")" 'app          | t'
wait "$early" || fail 'psql that started before db'
contains 'psql that started before db' "$(cat "$work/early")" 'app          | t'
equal 'the health check' "$(docker inspect -f '{{.State.Health.Status}} {{index .Config.Healthcheck.Test 1}}' "$(container db)")" 'healthy /uds'
contains 'a socket that is not there' "$(waiting exec -T db /uds wait /var/run/postgresql/none --timeout 1ms 2>&1 || true)" 'uds: /var/run/postgresql/none: no such file or directory (ENOENT)'
