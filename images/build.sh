#!/bin/sh
# Builds both images under the names that deploy/ uses: udsecho-server and
# udsecho-client. `make images` calls it.
set -eu
cd "$(dirname "$0")/.."

images/base.sh -q
# What the environment says goes before what .env says, as for compose.
from() { eval "echo \"\${$1:-$(sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1)}\""; }
for program in server client; do
	set -- # the build arguments
	for arg in GO_IMAGE BASE_IMAGE; do
		[ -z "$(from $arg)" ] || set -- "$@" --build-arg "$arg=$(from $arg)"
	done
	log=$(docker build -q "$@" -f "$program/Dockerfile" -t "udsecho-$program:latest" . 2>&1) || {
		echo "$log" >&2
		echo "images: the $program image does not build: the lines above say why" >&2
		exit 1
	}
	echo "images: built udsecho-$program:latest" >&2
done
