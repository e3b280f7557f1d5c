#!/bin/sh
# Unix socket or TCP? On this machine, in containers. `make bench` calls it; it
# ends in tables, bench.json, its relatives and bench.png, and takes everything down.
#
#     UDS_SIZE=1024 UDS_CONNECTIONS=10 make bench     measures something else
set -eu
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME="${COMPOSE_PROJECT_NAME:-udsecho-bench}" COMPOSE_FILE=compose.yaml:bench/compose.yaml
. integration/compose.sh

measure() { # measure FILE TITLE
	echo "--- $2"
	quietly compose up -d --force-recreate bench-unix bench-bridge bench-loopback bench
	status=$(docker wait "$(container bench)")
	docker logs "$(container bench)"
	[ "$status" -eq 0 ]
	docker cp "$(container bench):/run/clients/bench.json" "$1" >/dev/null
}

echo '--- building the images'
quietly compose build bench bench-unix
measure bench.json 'round trips; both ends poll for 100 µs before they sleep'
UDS_SPIN=0s UDS_SIZE=64 measure bench-nospin.json 'the same, and neither end polls'
UDS_SIZE=65536 UDS_CONNECTIONS=1 UDS_WINDOW=16 measure bench-pump.json 'a pump: 16 messages in flight on one connection'
plot='no plot, because Go is not installed here'
if command -v go >/dev/null; then
	quietly go run ./bench/plot bench.json bench-nospin.json bench-pump.json bench.png
	plot='the plot in bench.png'
fi
echo "--- the same numbers are in bench.json, bench-nospin.json and bench-pump.json, $plot"
