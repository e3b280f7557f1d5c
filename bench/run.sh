#!/bin/sh
# Unix socket or TCP? On this machine, in containers. `make bench` calls it; it
# ends in two tables, bench.json and bench.png, and takes everything down.
#
#     UDS_SIZE=1024 UDS_CONNECTIONS=10 make bench     measures something else
set -eu
cd "$(dirname "$0")/.."

images/base.sh -q
compose=$(integration/compose.sh)
export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-udsecho-bench}" COMPOSE_FILE=compose.yaml:bench/compose.yaml
log=$(mktemp)
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	status=$?
	trap - EXIT INT TERM
	[ "$status" -eq 0 ] || cat "$log" >&2
	$compose down -v >"$log" 2>&1 || { cat "$log" >&2; status=1; }
	rm -f "$log"
	exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

quietly() {
	if [ -t 2 ]; then "$@" >&2; else "$@" >"$log" 2>&1; fi
}
bench() {
	docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter label=com.docker.compose.service=bench
}
measure() {
	# shellcheck disable=SC2086 # two words
	quietly $compose up -d --force-recreate bench
	status=$(docker wait "$(bench)")
	docker logs "$(bench)"
	[ "$status" -eq 0 ]
}

echo '--- building the images'
# shellcheck disable=SC2086
quietly $compose build bench bench-unix
echo "--- a pump: 64 KiB messages, 16 on their way on one connection"
UDS_SIZE=65536 UDS_CONNECTIONS=1 UDS_WINDOW=16 measure
docker cp "$(bench):/run/clients/bench.json" bench-pump.json >/dev/null
echo "--- round trips"
measure
docker cp "$(bench):/run/clients/bench.json" bench.json >/dev/null
docker cp "$(bench):/run/clients/bench.png" bench.png >/dev/null
echo '--- the same numbers are in bench.json and bench-pump.json, the plot in bench.png'
