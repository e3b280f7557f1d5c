#!/bin/sh
# Builds the images under the names that deploy/ uses: udsecho-server and
# udsecho-client, and udsecho-tools. `make images` calls it.
set -eu
cd "$(dirname "$0")/.."

tools/offline/base.sh -q
# As for compose, a variable of the environment overrides .env.
from() { eval "echo \"\${$1:-$(sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1)}\""; }
for program in server client tools; do
	set -- # the build arguments
	for arg in GO_IMAGE BASE_IMAGE; do
		[ -z "$(from $arg)" ] || set -- "$@" --build-arg "$arg=$(from $arg)"
	done
	set -- docker build "$@" --target "$program" -t "udsecho-$program:latest" .
	if [ -t 2 ]; then
		"$@" >&2
	elif ! log=$("$@" 2>&1); then
		echo "$log" | tail -n 30 >&2
		exit 1
	fi
	echo "images: built udsecho-$program:latest" >&2
done
