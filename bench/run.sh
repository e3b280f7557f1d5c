#!/bin/sh
# Unix socket or TCP? On this machine, in containers. `make bench` calls it; it
# ends in two tables, bench.json and bench.png, and takes everything down.
#
#     UDS_SIZE=1024 UDS_CONNECTIONS=10 make bench     measures something else
set -eu
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-udsecho-bench}" COMPOSE_FILE=compose.yaml:bench/compose.yaml
. integration/compose.sh

measure() {
	quietly compose up -d --force-recreate bench
	status=$(docker wait "$(container bench)")
	docker logs "$(container bench)"
	[ "$status" -eq 0 ]
}

echo '--- building the images'
quietly compose build bench bench-unix
echo "--- a pump: 64 KiB messages, 16 in flight on one connection"
UDS_SIZE=65536 UDS_CONNECTIONS=1 UDS_WINDOW=16 measure
docker cp "$(container bench):/run/clients/bench.json" bench-pump.json >/dev/null
echo "--- round trips"
measure
docker cp "$(container bench):/run/clients/bench.json" bench.json >/dev/null
plot='no plot, because Go is not installed here'
if command -v go >/dev/null; then
	quietly go run ./bench/plot bench.json bench.png
	plot='the plot in bench.png'
fi
echo "--- the same numbers are in bench.json and bench-pump.json, $plot"
