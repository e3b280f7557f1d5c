#!/bin/bash
# A lab is namespaces of this machine with nodes in it. A node is namespaces of its
# own, a host name, a link to the other nodes, and the programs that run in it.
#
#     deploy/lab/lab.sh node NAME           is process 1 of a node; see node() below
#     deploy/lab/lab.sh remove_groups NAME  removes empty control groups
#
# The scripts beside this one source it; integration/ starts a node of its own.
# All processes are in PID namespaces, all mounts in mount namespaces, all links
# in network namespaces: they go with the lab's first process, even if that one is
# killed. Empty control groups stay then, and the next lab removes them.
set -Eeuo pipefail
trap 'echo "$(basename "$0"): line $LINENO of ${BASH_SOURCE[0]} failed: $BASH_COMMAND" >&2' ERR
shopt -s nullglob

# shellcheck disable=SC2034 # the scripts that source this use them
self=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
lab=/dev/shm          # in the lab: a file system of its own, in memory, which the nodes see
logs=$lab/logs        # what the clients of NODE counted, in files NODE.*
group=udsecho-lab     # the parent of the nodes' control groups
lock=/run/udsecho-lab # an empty folder, locked, as there is one lab at a time
patience=180          # seconds that anything may take on a slow machine
declare -A pid        # of process 1 of each node, by name

say() { echo "--- $*" >&2; }
die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

need() { # need PROGRAM PACKAGE
	command -v "$1" >/dev/null || die "the program $1 is missing: install the package $2"
}

await() { # await WHAT COMMAND...: until the command succeeds
	local what=$1 said late=$((SECONDS + patience))
	shift
	until said=$("$@" 2>&1); do
		[ "$SECONDS" -lt "$late" ] || die "$what: not within $patience s: $(tail -n 1 <<<"$said")"
		sleep 0.1
	done
}

# Control groups: one tree (version 2), or a tree for each controller (version 1).
roots() {
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		echo /sys/fs/cgroup
	else
		find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d
	fi
}

# make_groups makes the node's groups. A child has no processors (version 1) and no
# controllers (version 2) until it is given its parent's.
make_groups() { # make_groups NODE
	local root dir file
	for root in $(roots); do
		for dir in "$root" "$root/$group" "$root/$group/$1"; do
			[ -d "$dir" ] || mkdir "$dir" 2>/dev/null || die "cannot make $dir: control groups have to be writable; in a container: docker run --privileged"
			for file in cpus mems; do
				[ ! -e "$dir/cpuset.$file" ] || [ "$dir" = "$root" ] || cat "$dir/../cpuset.$file" >"$dir/cpuset.$file"
			done
			[ ! -s "$dir/cgroup.controllers" ] || sed 's/[^ ]*/+&/g' "$dir/cgroup.controllers" >"$dir/cgroup.subtree_control"
		done
	done
}

remove_groups() {
	local root busy=0
	for root in $(roots); do
		[ ! -d "$root/$group" ] || find "$root/$group" -depth -type d -exec rmdir {} + || busy=1
	done
	return "$busy"
}

root() { # root INSTEAD: what those do who are not root
	[ "$(id -u)" = 0 ] || die "needs root, for namespaces of its own: $1"
}

# enter runs a program in a lab, as process 1. INSTEAD is the advice if it cannot.
enter() { # enter INSTEAD PROGRAM...
	local program status=0
	for program in ip:iproute2 iptables:iptables nsenter:util-linux setpriv:util-linux flock:util-linux; do
		need "${program%:*}" "${program#*:}"
	done
	unshare --mount --uts --ipc --net --pid --fork true 2>/dev/null ||
		die "cannot make namespaces here (in a container: docker run --privileged); $1"
	case $PWD/ in /run/* | /var/lib/* | /var/log/* | $lab/*) die "the nodes have a ${PWD%/*} of their own, where this checkout is not: move it" ;; esac
	shift
	mkdir -p "$lock"
	exec 9<"$lock" # the lab's processes keep it open, and so the lock, to the last
	flock -n 9 || die "in use: another lab holds $lock: wait for its end, or stop it"
	await "remove the control groups of a lab that was killed" remove_groups
	trap 'kill -KILL "$inside"' INT TERM HUP
	UDSECHO_LAB=1 setpriv --pdeathsig KILL unshare --mount --uts --ipc --net --pid --fork --kill-child "$@" <&0 &
	inside=$!
	wait "$inside" || status=$?
	wait "$inside" 2>/dev/null || status=$? # again, as a signal ends a wait
	trap - INT TERM HUP
	await "remove the control groups" remove_groups
	rmdir "$lock"
	exit "$status"
}

# set_up runs first in a lab. 10.77.0.100 is the lab itself,
# 10.77.0.N node-N. Lookups of other names fail at once.
set_up() {
	mount -t proc proc /proc
	mount -t tmpfs -o mode=0755 lab "$lab"
	mount -t tmpfs -o mode=0755 lab /var/log
	mkdir "$logs"
	echo 'nameserver 127.0.0.1' >"$lab/resolv.conf"
	mount --bind "$lab/resolv.conf" /etc/resolv.conf
	ip link set lo up
	ip link add nodes type bridge
	ip address add 10.77.0.100/24 dev nodes
	ip link set nodes up
}

start_node() { # start_node NUMBER
	local name=node-$1 inside
	make_groups "$name"
	mkfifo "$lab/$name"
	# For reading and writing, so that it has no end.
	unshare --mount --uts --ipc --net --pid --fork --kill-child deploy/lab/lab.sh node "$name" 0<>"$lab/$name" >"$lab/$name.pid" &
	await "start $name" test -s "$lab/$name.pid"
	pid[$name]=$(<"$lab/$name.pid")
	inside="nsenter -t ${pid[$name]} -n ip"
	ip link add "$name" type veth peer name eth0 netns "${pid[$name]}"
	ip link set "$name" master nodes up
	$inside address add "10.77.0.$1/24" dev eth0
	$inside link set eth0 up
}

tell() { # tell NODE COMMAND...
	echo "${*:2}" >"$lab/$1"
}

# node is process 1 of a node. It runs the lines of its standard input: commands, or
# the functions below. It ends with its input, and the kernel then kills everything
# that it started. Once the node has folders of its own, it writes its process id as
# the outer namespace knows it: /proc/ID/root leads to these folders.
node() { # node NAME
	local id line dir
	read -r id _ </proc/self/stat
	mount -t proc proc /proc
	echo "$1" >/proc/sys/kernel/hostname
	for dir in /run /var/lib /var/log /etc/docker; do
		[ ! -d "$dir" ] || mount -t tmpfs -o mode=0755 node "$dir"
	done
	ip link set lo up
	echo "$id"
	set -f
	while read -r line; do $line; done
}

start() { # start PROGRAM...
	"$@" </dev/null >>"/var/log/${1##*/}.log" 2>&1 &
	disown # its end is no news
}

engine() { # engine GROUP [FLAG...]: starts a Docker Engine with its containers below the group
	start dockerd --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$1" "${@:2}"
}

# crash kills the node's processes of these names, and waits until they are gone.
# Their containers are not their children, and live on.
crash() { # crash NAME...
	local proc name ids=
	for proc in $(set +f && echo /proc/[1-9]*); do
		read -r name <"$proc/comm" && [[ " $* " = *" $name "* ]] && ids="$ids ${proc#/proc/}"
	done 2>/dev/null
	# shellcheck disable=SC2086 # several ids
	kill -KILL $ids 2>/dev/null || : # the first may take the second with it
	for proc in $ids; do while [ -d "/proc/$proc" ]; do sleep 0.05; done; done
}

power_cut() { # all of the node's processes, as a power cut would
	kill -KILL -1
	while (set +f && set -- /proc/[1-9]* && [ $# -gt 2 ]); do sleep 0.05; done # this one and its copy
}

# The rest is for scripts whose clients count echoes. Such a script has a function
# collect, which brings a node's files in $logs up to date. A line of these files is
# a time, "echoes", a number, "failures", a number; the last line has the totals.

count() { # count NODE...: prints the echoes and the failures there so far
	local node files=(/dev/null)
	for node; do
		collect "$node"
		files+=("$logs/$node".*)
	done
	awk '
		$2 == "echoes" && $3 > echoes[FILENAME] { echoes[FILENAME] = $3 }
		$2 == "echoes" && $5 > failures[FILENAME] { failures[FILENAME] = $5 }
		END {
			for (f in echoes) e += echoes[f]
			for (f in failures) n += failures[f]
			print e + 0, n + 0
		}' "${files[@]}"
}

since() { # since "ECHOES FAILURES" NODE...: what has come to these counts since
	local now
	now=$(count "${@:2}")
	echo "$((${now% *} - ${1% *})) $((${now#* } - ${1#* }))"
}

has() { # has ECHOES NODE
	local now
	now=$(count "$2")
	[ "${now% *}" -ge "$1" ] || { echo "${now% *} of $1" && false; }
}

more() { # more ECHOES NODE...: waits until the clients of each have so many echoes more
	local -A want
	local node now
	for node in "${@:2}"; do
		now=$(count "$node")
		want[$node]=$((${now% *} + $1))
	done
	for node in "${@:2}"; do
		await "wait for $1 echoes on $node" has "${want[$node]}" "$node"
	done
}

row() { printf '%-10s %-10s %-14s %7s %9s\n' "$@"; }

case "${BASH_SOURCE[0]}:${1-}" in
"$0:node") node "$2" ;;
"$0:remove_groups") group=$2 && remove_groups ;;
esac
