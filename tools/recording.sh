#!/bin/sh
# Records the demo as docs/demo.svg, without the server's events, at a pace that
# one can read. It plays once and rests on the whole transcript, which is also what
# shows where nothing is animated. `make recording` calls it.
set -eu
cd "$(dirname "$0")/.."

# show prints a command, as typed, and then its output.
show() {
	printf '$ make demo\n'
	make --no-print-directory demo 2>/dev/null |
		sed -e '/^--- server: events/,/^--- server: ls/ { /ls -l/ !d; }' |
		while IFS= read -r line; do
			printf '%s\n' "$line"
			sleep 0.2
		done
	sleep 3
}
if [ "${1:-}" = --show ]; then
	show
	exit
fi

tools/need.sh termtosvg
make --no-print-directory demo >/dev/null # so that the recorded one waits for no build
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# termtosvg wants a terminal; script has one for it.
script -qec "stty cols 90 rows 24; termtosvg docs/demo.svg -c 'tools/recording.sh --show' -g 80x22 -M 1000 -D 3000" /dev/null >"$log" 2>&1 || {
	tail -n 5 "$log" >&2
	exit 1
}
last=$(sed -n 's/^100.*translateY(\(-[0-9]*\)px).*/\1/p' docs/demo.svg)
sed -i "s/animation-iteration-count:infinite/animation-iteration-count:1/; s/<g id=\"screen_view\">/<g id=\"screen_view\" transform=\"translate(0,$last)\">/" docs/demo.svg
echo "recording: docs/demo.svg, $(($(wc -c <docs/demo.svg) / 1024)) KiB" >&2
