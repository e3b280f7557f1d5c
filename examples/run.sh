#!/bin/sh
# Runs and tests all examples, or those that are named, and ends with a table.
# `make examples` calls it.
#
#     COMPOSE=docker-compose examples/run.sh x11
set -eu
cd "$(dirname "$0")/.."

tools/offline/base.sh -q
tools/offline/base.sh -q --debian
[ $# -gt 0 ] || set -- echo nginx-php postgres x11 one-door languages grpc
table='' failed=0
for example; do
	echo "=== examples/$example"
	start=$(date +%s)
	set -- examples/"$example"/test.sh
	[ -e "$1" ] || set -- go test -count=1 ./examples/"$example" # it has no container
	if "$@"; then result=ok; else result=FAILED failed=1; fi
	table="$table$(printf '%-10s  %-6s  %4d s' "$example" "$result" $(($(date +%s) - start)))
"
done
printf '\n%-10s  %-6s  %6s\n%s' EXAMPLE RESULT TIME "$table"
exit "$failed"
