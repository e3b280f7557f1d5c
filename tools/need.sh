#!/bin/sh
# Installs the packages of programs that are missing, as root on Debian or Ubuntu.
# Elsewhere it names the packages.
#
#     tools/need.sh shellcheck spin    exits with 1 if one is still missing
#     tools/need.sh --tests            the programs without which a test is skipped; exits with 0
#     tools/need.sh --stress           the same for make stress
set -eu
cd "$(dirname "$0")/.."

package() { # package PROGRAM: which one contains it
	case $1 in
	debootstrap) echo debootstrap debian-archive-keyring ;;
	gcc) echo gcc libc6-dev ;;
	ip) echo iproute2 ;;
	nc.openbsd) echo netcat-openbsd ;;
	nsenter | prlimit | setpriv | setsid | taskset | unshare) echo util-linux ;;
	postgres) echo postgresql ;;
	qemu-aarch64-static) echo qemu-user-static ;;
	busctl | systemd-socket-activate) echo systemd ;;
	Xvfb) echo xvfb ;;
	*) echo "$1" ;;
	esac
}
here() { # here PROGRAM
	case $1 in
	'docker compose') docker compose version ;;
	postgres) ls /usr/lib/postgresql/*/bin/postgres ;; # Debian has it outside PATH
	*) command -v "$1" ;;
	esac >/dev/null 2>&1
}

why='this needs them'
if [ "$1" = --tests ] || [ "$1" = --stress ]; then
	more=
	[ "$1" = --tests ] || more='postgres tshark'
	# gcc is for the race detector.
	# shellcheck disable=SC2086 # several words
	set -- bash bindfs busctl curl dbus-daemon fuse-overlayfs gcc ip iptables nc.openbsd nsenter prlimit python3 setpriv socat systemd-socket-activate taskset unshare Xvfb $more
	why='tests run them with the stack; a test whose program is missing is skipped, and says so'
	optional=true
fi

packages=
for program; do
	if here "$program"; then continue; fi
	if [ "$program" = 'docker compose' ]; then
		version=$(cd tools/offline/compose && GOWORK=off go list -m -f '{{.Version}}' github.com/docker/compose/v2)
		echo "need: building the docker compose plugin $version, which takes some minutes the first time" >&2
		plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
		mkdir -p "$plugins"
		(cd tools/offline/compose && GOWORK=off go build -trimpath -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$version" \
			-o "$plugins/docker-compose" github.com/docker/compose/v2/cmd)
		continue
	fi
	for p in $(package "$program"); do
		case " $packages " in *" $p "*) ;; *) packages="$packages $p" ;; esac
	done
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "need: installing$packages: $why" >&2
	log=$(mktemp)
	# shellcheck disable=SC2086 # several packages
	if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages; } </dev/null >"$log" 2>&1; then
		tail -n 5 "$log" >&2
	fi
	rm -f "$log"
fi
for program; do
	here "$program" || {
		echo "need: $program is missing: install the package $(package "$program")" >&2
		[ -n "${optional:-}" ] || exit 1
	}
done
