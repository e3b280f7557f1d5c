#!/bin/sh
# The stack from nothing to nothing: build, start, show both transcripts and the
# socket file, take down. `make demo` calls it.
set -eu
cd "$(dirname "$0")/.."

images/base.sh -q
compose=$(integration/compose.sh)
# A project of its own: a stack that you have running is left alone.
export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-udsecho-demo}" UDS_LOG_FORMAT=plain
log=$(mktemp)
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	status=$?
	trap - EXIT INT TERM
	[ "$status" -eq 0 ] || cat "$log" >&2
	$compose down -v >"$log" 2>&1 || { cat "$log" >&2; status=1; }
	rm -f "$log"
	[ "$status" -ne 0 ] || echo '--- taken down: no container, volume or network is left'
	exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

quietly() {
	if [ -t 2 ]; then "$@" >&2; else "$@" >"$log" 2>&1; fi
}
container() {
	docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"
}

echo '--- building two images (some minutes the first time, seconds later)'
# shellcheck disable=SC2086 # two words
quietly $compose build
echo '--- starting them as two containers without a network'
# shellcheck disable=SC2086
quietly $compose up -d
status=$(docker wait "$(container client)")

# The client may end a moment before the server has said all.
tries=100
until docker logs "$(container server)" 2>&1 | grep -q 'no data from' || [ $((tries -= 1)) -eq 0 ]; do sleep 0.1; done

echo '--- client: events, on its standard error'
# shellcheck disable=SC2069 # standard error goes on, standard output does not
docker logs "$(container client)" 2>&1 >/dev/null
echo '--- client: the echo, on its standard output'
docker logs "$(container client)" 2>/dev/null
echo
echo '--- server: events'
docker logs "$(container server)" 2>&1
echo '--- server: ls -l /run/uds'
docker exec "$(container server)" ls -l /run/uds
exit "$status"
