#!/bin/sh
# Builds for other machines: 32-bit and arm64 Linux with all tests, and an arm64 echo
# under an emulator. On macOS and Windows the library compiles, and the programs
# print one line that names what to run instead.
#
#     tools/platforms.sh
set -eu
cd "$(dirname "$0")/.."
tools/need.sh qemu-aarch64-static

d=$(mktemp -d)
server=
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	status=$?
	trap - EXIT INT TERM
	[ -z "$server" ] || kill "$server" 2>/dev/null || :
	[ "$status" -eq 0 ] || cat "$d"/*.log >&2 2>/dev/null || :
	rm -rf "$d"
	exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

for arch in arm 386 arm64; do
	GOOS=linux GOARCH=$arch CGO_ENABLED=0 go vet ./... ./uds/...
	echo "linux/$arch: compiles"
done

for os in darwin freebsd openbsd windows; do
	GOOS=$os CGO_ENABLED=0 go vet ./uds/...
	echo "$os: the library compiles, with its tests"
done
for os in darwin windows; do
	for program in server client; do
		GOOS=$os go build -o /dev/null "./$program"
	done
	echo "$os: compiles to one line"
done
for program in server client; do
	# A file that is named is compiled, whatever system it is for.
	go build -o "$d/other" "$program/main_other.go"
	status=0
	"$d/other" 2>"$d/other.log" || status=$?
	[ "$status" -eq 1 ]
	grep -q "^$program: needs Linux.*docker compose" "$d/other.log"
	[ "$(wc -l <"$d/other.log")" -eq 1 ]
done

GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build -o "$d/" ./server ./client ./cmd/uds
cd "$d"
qemu-aarch64-static ./server --listen stream:s --listen datagram:d --listen seqpacket:q 2>server.log &
server=$!
for address in stream:s datagram:d seqpacket:q; do
	[ "$(qemu-aarch64-static ./client --retry 60s --connect "$address" 'hello from arm64' 2>client.log)" = 'hello from arm64' ]
	echo "linux/arm64: echoes on $address"
done
kill "$server"
wait "$server"
server=
