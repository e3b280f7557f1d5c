#!/bin/sh
# Unpacks packages of this distribution (Debian or Ubuntu) in a folder, without root:
# nothing is installed, and no service starts.
#
#     tools/offline/unpack.sh .bin/debian busybox-static
set -eu
mkdir -p "$1"
cd "$1"
shift
command -v apt-get >/dev/null || { echo "unpack: this is not Debian or Ubuntu: install $*" >&2; exit 1; }
echo "unpack: $* of this distribution, in $PWD" >&2
# The lists of packages may be missing, or older than what is served.
if ! log=$({ apt-get download -q "$@" || { apt-get update -q && apt-get download -q "$@"; }; } 2>&1); then
	echo "$log" | tail -n 1 >&2
	echo "unpack: cannot download $*: run 'apt-get update' as root, or install them" >&2
	exit 1
fi
for package in *.deb; do
	dpkg-deb --extract "$package" .
	rm "$package"
done
