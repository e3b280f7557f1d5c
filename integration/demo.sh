#!/bin/sh
# The stack from nothing to nothing: build, start, show both transcripts and the
# socket files, take down. `make demo` calls it.
set -eu
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-udsecho-demo}" UDS_LOG_FORMAT=plain
base=--demo # that is all it runs
. integration/compose.sh

echo '--- building two images (a minute or two the first time, seconds later)'
quietly compose build
echo '--- starting them as two containers without a network'
quietly compose up -d
status=$(docker wait "$(container client)")

# The client may end a moment before the server's last line.
tries=600 # a minute
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
