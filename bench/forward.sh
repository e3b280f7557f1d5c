#!/bin/sh
# `uds forward`, socat and systemd-socket-proxyd under the same load: medians of
# interleaved rounds, and their ranges. `make bench-forward` calls it.
#
#     ROUNDS=5 make bench-forward
set -eu
cd "$(dirname "$0")/.."
# shellcheck disable=SC3045 # every shell that is a sh here has it
ulimit -n "$(ulimit -Hn)" # socket-proxyd takes six descriptors a connection
rounds=${ROUNDS:-5}
proxyd=/lib/systemd/systemd-socket-proxyd
tools/need.sh socat systemd-socket-activate setsid
[ -x "$proxyd" ] || { echo "bench-forward: no $proxyd, which the package systemd contains on Debian" >&2; exit 1; }
work=$(mktemp -d)
started=
stop() {
	# Their whole groups: socat starts a process for each connection.
	for pid in $started; do kill -- "-$pid" 2>/dev/null || true; done
	for pid in $started; do wait "$pid" 2>/dev/null || true; done
	started=
}
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	trap - EXIT INT TERM
	stop
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

(cd bench/peers && GOWORK=off go build -o "$work/" ./relays)
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$work/" ./cmd/uds

# relay NAME ADDRESS COMMAND...: start a relay, wait until it listens.
relay() {
	name=$1
	address=$2
	shift 2
	setsid "$@" >/dev/null 2>&1 &
	started="$started $!"
	relays="$relays $name=$!=$address"
	tries=200
	until [ -S "$address" ] || grep -q "$(printf ': 0100007F:%04X 00000000:0000 0A' "${address##*:}" 2>/dev/null)" /proc/net/tcp; do
		[ $((tries -= 1)) -gt 0 ] || { echo "bench-forward: $name does not start: $*" >&2; exit 1; }
		sleep 0.05
	done
}
measure() {
	# shellcheck disable=SC2086 # several words
	"$work/relays" "$target" "$rounds" $relays
	stop
	rm -f "$target"
}
forward="$work/uds forward --log-level warn --max-connections 0 --connect"
target=$work/target

echo '--- stream to stream'
relays="direct=0=$target"
# shellcheck disable=SC2086 # several words
relay uds-forward "$work/ours" $forward "$target" --listen "$work/ours"
relay socat "$work/socat" socat "UNIX-LISTEN:$work/socat,fork,backlog=128" "UNIX-CONNECT:$target"
relay socket-proxyd "$work/proxyd" systemd-socket-activate -l "$work/proxyd" $proxyd -c 10000 "$target"
measure

echo '--- tcp to stream'
relays=
# shellcheck disable=SC2086
relay uds-forward 127.0.0.1:7971 $forward "$target" --listen tcp::7971
relay socat 127.0.0.1:7972 socat TCP-LISTEN:7972,bind=127.0.0.1,fork,backlog=128,reuseaddr "UNIX-CONNECT:$target"
relay socket-proxyd 127.0.0.1:7973 systemd-socket-activate -l 127.0.0.1:7973 $proxyd -c 10000 "$target"
measure
