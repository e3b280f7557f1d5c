#!/bin/sh
# Our server and its alternatives under the same load, without containers. Ratios
# are to the faster of the two C servers in the same round.
# `make bench-peers` calls it.
#
#     ROUNDS=5 DURATION=1s make bench-peers
set -eu
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-5}
duration=${DURATION:-1s}

tools/need.sh gcc socat ncat python3 taskset setsid
work=$(mktemp -d)
started=
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	trap - EXIT INT TERM
	stop
	rm -rf "$work"
}
stop() {
	# Their whole groups: socat and ncat start a process for each connection.
	for pid in $started; do kill -- "-$pid" 2>/dev/null || true; done
	for pid in $started; do wait "$pid" 2>/dev/null || true; done
	started=
	rm -f "$work"/s/*
}
trap finish EXIT
trap 'exit 1' INT TERM

mkdir "$work/s"
for program in echo_thread echo_epoll client connect; do
	gcc -O2 -Wall -Wextra -pthread -o "$work/c_$program" bench/c/$program.c
done
(cd bench/peers && GOWORK=off go build -o "$work/" ./...)
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$work/" ./server ./client ./cmd/uds
cp bench/peers/source.py "$work/"
cd "$work/s"

# serve NAME COMMAND...: start a server whose socket is NAME, wait for it.
serve() {
	name=$1
	shift
	setsid "$@" >/dev/null 2>&1 &
	started="$started $!"
	tries=200
	until [ -S "$name" ]; do
		[ $((tries -= 1)) -gt 0 ] || { echo "bench-peers: $name does not start: $*" >&2; exit 1; }
		sleep 0.05
	done
}
ours() { # ours NAME OPTION...
	name=$1
	shift
	serve "$name" "$work/server" --log-level warn --chunk 65536 --max-connections 0 --listen "${type:-stream}:./$name" "$@"
}
c_servers() {
	serve c-thread "$work/c_echo_thread" c-thread
	serve c-epoll "$work/c_echo_epoll" c-epoll
}
peers() {
	serve c-sleeper "$work/c_echo_epoll" c-sleeper stream sleeper
	serve gnet "$work/gnet" gnet
	serve gonet "$work/gonet" gonet
	serve netpoll "$work/netpoll" netpoll
	serve socat socat UNIX-LISTEN:socat,fork,backlog=128 PIPE
	serve ncat ncat -l -k -U ncat -e "$(command -v cat)"
}
# bench TITLE SERVERS OPTION...
bench() {
	echo "--- $1"
	to=$2
	shift 2
	"$work/uds" bench --connect "$to" --baseline "${baseline:-2}" --rounds "$rounds" --duration "$duration" --retry 10s "$@"
}

c_servers
peers
ours ours --spin 0s
ours ours-spin
serve source python3 "$work/source.py" source
servers=c-thread,c-epoll,c-sleeper,ours,ours-spin,gnet,gonet,netpoll
bench '64 bytes, 1 connection; the client spins' "$servers,socat,ncat,source"
bench '64 bytes, 1 connection; the client does not spin' "$servers" --spin 0s
bench '64 bytes, 50 connections' "$servers,socat,ncat" --connections 50
bench '64 bytes, 1000 connections' "$servers" --connections 1000
bench '64 KiB, 4 connections, 2 in flight' "$servers,socat,ncat" --size 65536 --connections 4 --window 2
bench '64 bytes, 10 connections, 32 in flight' "$servers,socat,ncat" --connections 10 --window 32
stop

c_servers
peers
ours ours --spin 0s
ours ours-spin
echo "--- connect, echo 64 bytes, close: a second, and the server's processor time for each, with 1, 4 and 20 clients at once"
i=0
while [ $((i += 1)) -le "$rounds" ]; do
	for s in c-thread c-epoll ours ours-spin gnet; do
		echo "$s: $("$work/c_connect" $s 1 1) $("$work/c_connect" $s 4 1) $("$work/c_connect" $s 20 1)"
	done
done
stop

echo '--- 64 bytes, 50 connections, servers and client on one CPU'
serve c-thread taskset -c 0 "$work/c_echo_thread" c-thread
serve c-epoll taskset -c 0 "$work/c_echo_epoll" c-epoll
type=stream serve ours taskset -c 0 "$work/server" --log-level warn --chunk 65536 --max-connections 0 --listen ./ours
taskset -c 0 "$work/uds" bench --connect c-thread,c-epoll,ours --baseline 2 --rounds "$rounds" --duration "$duration" --connections 50
stop

for type in seqpacket datagram; do
	serve c-thread "$work/c_echo_thread" c-thread $type
	ours ours --spin 0s
	ours ours-spin
	baseline=1 bench "$type, 64 bytes, 1 connection" $type:c-thread,$type:ours,$type:ours-spin
	stop
done
type=stream

# Server and client of one kind against server and client of the other.
c_servers
ours ours
ours ours-still --spin 0s
echo '--- 64 bytes, 1 connection, both ends of one kind: messages/s, p50 and p99 in ns'
i=0
while [ $((i += 1)) -le "$rounds" ]; do
	for s in c-thread c-epoll; do
		echo "$s and C client: $("$work/c_client" $s 64 "${duration%s}")"
	done
	"$work/uds" bench --connect ours --rounds 1 --duration "$duration" --json - |
		sed -n 's/.*"messages_per_second": \([0-9.]*\).*/ours and our client: \1/p; s/.*"p\(50\|99\)_ns": \([0-9]*\).*/  p\1 \2/p' | tr -d '\n'
	echo
done
echo '--- a pump of 1 GiB through the echo, both ends of one kind: ms'
head -c 1G /dev/zero >"$work/in"
i=0
while [ $((i += 1)) -le "$rounds" ]; do
	for s in c-thread c-epoll ours ours-still; do
		case $s in
		c-*) set -- "$work/c_client" $s ;;
		*) set -- "$work/client" --log-level warn --chunk 65536 --connect ./$s - ;;
		esac
		from=$(date +%s%N)
		"$@" <"$work/in" >/dev/null
		echo "$s and its client: $((($(date +%s%N) - from) / 1000000))"
	done
done
rm "$work/in"
stop

echo '--- memory: KiB for each of 10,000 connections, after an echo of 64 KiB on each'
memory() { awk '/^VmRSS/ {rss = $2} /^VmPTE/ {pte = $2} END {print rss + pte}' "/proc/$1/status"; }
c_servers
ours ours
for s in c-thread c-epoll ours; do
	pid=$(for p in $started; do tr '\0' ' ' <"/proc/$p/cmdline" | grep -q -- "$s" && echo "$p"; done | head -n 1)
	before=$(memory "$pid")
	"$work/uds" bench --connect ./$s --size 65536 --connections 10000 --rounds 1 --warmup 3s --duration 6s --retry 10s --json - >"$work/m.json" &
	load=$!
	sleep 8
	echo "$s: $(( ($(memory "$pid") - before) * 100 / 10000 ))e-2"
	wait $load
done
