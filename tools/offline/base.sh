#!/bin/sh
# Makes the images that the Dockerfile starts from, if no registry can be reached.
# If one can be reached it does nothing, because the engine pulls them.
#
# It makes them from this machine's own Go and a static busybox, and writes GO_IMAGE
# and BASE_IMAGE to .env, which compose reads. Call it again when the programs import
# something new; if there is nothing to do, it takes a second.
#
#     tools/offline/base.sh            logs what it does on standard error
#     tools/offline/base.sh -q         logs only what it makes
#     tools/offline/base.sh --demo     makes what server and client need, not the tool uds and the examples
#     tools/offline/base.sh --debian   makes DEBIAN_IMAGE instead, which examples/ start from:
#                                      debootstrap does it, as root, in some minutes
set -eu
cd "$(dirname "$0")/../.."

go_image=golang:1.26-alpine
base_image=busybox:1.37-musl
debian_image=debian:bookworm-slim
local_go=udsecho-golang:local
local_base=udsecho-busybox:local
local_debian=udsecho-debian:local
label=udsecho.made-from

say() { echo "images: $*" >&2; }
die() { say "$*"; exit 1; }
have() { docker image inspect "$1" >/dev/null 2>&1; }
made_from() { docker image inspect -f "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null; }

# hand VAR IMAGE: let .env name an image, or with no IMAGE none.
hand() {
	{ grep -v "^$1=" .env 2>/dev/null || true; [ $# -eq 1 ] || echo "$1=$2"; } >.env.new
	if [ -s .env.new ]; then mv .env.new .env; else rm -f .env .env.new; fi
}

# ensure VAR IMAGE LOCAL MAKER: the image that VAR names, or else IMAGE, or else
# LOCAL, which MAKER makes.
ensure() {
	named=$(eval "echo \"\${$1:-}\"")
	[ -n "$named" ] || named=$(sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1)
	if [ -n "$named" ] && [ "$named" != "$3" ]; then
		have "$named" || docker pull -q "$named" >/dev/null || die "$1 names $named, which is neither here nor can be pulled: correct it in the environment or in .env"
	elif have "$2" || { ! have "$3" && docker pull -q "$2" >/dev/null 2>&1; }; then
		named=$2
		hand "$1"
	else
		named=$3
		"$4"
		hand "$1" "$3"
	fi
	[ "$quiet" = -q ] || say "using $named"
}

# find_busybox sets busybox to the path of a static one, and unpacks a package if
# there is none.
find_busybox() {
	for busybox in "$(command -v busybox || true)" .bin/debian/bin/busybox .bin/debian/usr/bin/busybox; do
		# ldd fails on what is statically linked.
		[ ! -x "$busybox" ] || ldd "$busybox" >/dev/null 2>&1 || return 0
	done
	[ $# -eq 0 ] || die "busybox-static is unpacked in .bin/debian, but no static busybox is there"
	tools/offline/unpack.sh .bin/debian busybox-static || exit 1
	find_busybox again
}

# plant_busybox DIR: a root file system with a shell and its tools.
plant_busybox() {
	mkdir -p "$1/bin" "$1/etc" "$1/tmp"
	chmod 1777 "$1/tmp"
	cp "$busybox" "$1/bin/busybox"
	for applet in $("$busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
	done
}

# import DIR IMAGE FROM ENV [OPTION...]: the image that holds DIR; options are tar's.
import() {
	dir=$1 image=$2 from=$3 env=$4
	shift 4
	tar -C "$dir" --numeric-owner "$@" -cf "$work/tar" .
	docker import -c "LABEL $label=\"$from\"" -c "ENV $env" -c 'CMD ["sh"]' "$work/tar" "$image" >/dev/null
}

make_base() {
	find_busybox
	from="busybox $(cksum <"$busybox" | cut -d ' ' -f 1)"
	[ "$(made_from "$local_base")" != "$from" ] || return 0
	say "$base_image cannot be pulled: making $local_base from $busybox"
	plant_busybox "$work/base"
	import "$work/base" "$local_base" "$from" PATH=/usr/local/bin:/bin --owner=0 --group=0
}

# make_go makes the part of Go that compiles the programs: go, its tools, the source
# files that the programs are made of, and all of these compiled, because a container
# takes five times as long for that. The rest of Go stays out: a builder without
# BuildKit looks at each file of the image after each step.
# shellcheck disable=SC2086 # several programs
make_go() {
	find_busybox
	command -v go >/dev/null || die "$go_image cannot be pulled, and no Go is installed here to make it from: install Go 1.26"
	root=$(go env GOROOT) modules=$(go env GOMODCACHE) cache=$PWD/.bin/go-cache
	# As in the Dockerfile.
	programs='./server ./client'
	export CGO_ENABLED=0 GOFLAGS='-trimpath -gcflags=all=-dwarf=false'
	# The largest part of the standard library is compiled while the modules come.
	have "$local_go" || GOCACHE=$cache go build net/http &
	files() {
		go list -deps -f '{{range .GoFiles}}{{$.Dir}}/{{.}}
{{end}}{{range .SFiles}}{{$.Dir}}/{{.}}
{{end}}{{range .HFiles}}{{$.Dir}}/{{.}}
{{end}}{{range .EmbedFiles}}{{$.Dir}}/{{.}}
{{end}}' $programs | grep -e "^$root/" -e "^$modules/" >"$work/files"
		from="${from:-$(go env GOVERSION), files} $(cksum <"$work/files" | cut -d ' ' -f 1)"
	}
	from=
	files
	if [ -n "$demo" ]; then
		case $(made_from "$local_go") in "$from" | "$from "*) return 0 ;; esac
	else
		programs="$programs ./cmd/uds ./examples/grpc/server ./examples/grpc/client"
		files
		[ "$(made_from "$local_go")" != "$from" ] || return 0
	fi
	say "$go_image cannot be pulled: making $local_go from $from in $root"
	plant_busybox "$work/go"
	mkdir -p "$work/go/etc/ssl/certs"
	cp -L /etc/ssl/certs/ca-certificates.crt "$work/go/etc/ssl/certs/"
	wait
	GOCACHE=$cache go list -export -deps $programs >/dev/null
	ls -d "$cache" "$root/VERSION" "$root/go.env" "$root/bin/go" "$root"/pkg/include/* \
		"$root"/pkg/tool/*/asm "$root"/pkg/tool/*/compile "$root"/pkg/tool/*/link >>"$work/files"
	# What go asks of modules: the go.mod files of all, which choose the versions, and
	# more of those that are compiled. An upper-case letter is "!" and the lower-case one.
	go mod graph | tr ' ' '\n' | sort -u | sed "s/[A-Z]/!\l&/g; s,\(.*\)@\(.*\),$modules/cache/download/\1/@v/\2.mod," |
		sed 'p; s/mod$/info/p; s/info$/ziphash/' | xargs ls 2>/dev/null >>"$work/files" || true
	import "$work/go" "$local_go" "$from" 'PATH=/usr/local/go/bin:/usr/local/bin:/bin GOTOOLCHAIN=local GOPATH=/go GOCACHE=/go/cache' \
		--owner=0 --group=0 -P --transform "s,^$root/,usr/local/go/," --transform "s,^$modules/,go/pkg/mod/," \
		--transform "s,^$cache,go/cache," -T "$work/files"
}

make_debian() {
	from="debootstrap, ${debian_image#*:}"
	[ "$(made_from "$local_debian")" != "$from" ] || return 0
	[ "$(id -u)" = 0 ] || die "$debian_image cannot be pulled, and debootstrap makes it as root only: run 'sudo tools/offline/base.sh --debian' once, or name an image of Debian in DEBIAN_IMAGE"
	tools/need.sh debootstrap
	say "$debian_image cannot be pulled: making $local_debian with debootstrap"
	mkdir "$work/debian"
	debootstrap --variant=minbase bookworm "$work/debian" >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; die "debootstrap fails, see above"; }
	(
		cd "$work/debian"
		# What the image of that name has too: security updates, no documentation, and
		# no daemon that a package's installation starts.
		sed -n 's,^deb \([^ ]*\) bookworm .*,deb \1 bookworm-updates main\ndeb \1-security bookworm-security main,p' \
			etc/apt/sources.list >etc/apt/sources.list.d/updates.list
		printf 'path-exclude %s\n' '/usr/share/doc/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/man/*' >etc/dpkg/dpkg.cfg.d/no-documentation
		printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
		chmod 755 usr/sbin/policy-rc.d
		rm -rf usr/share/doc/* usr/share/info/* usr/share/locale/* usr/share/man/* var/cache/apt/* var/lib/apt/lists/* var/log/*.log
	)
	import "$work/debian" "$local_debian" "$from" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

quiet='' debian='' demo=''
for option; do
	case $option in
	-q) quiet=-q ;;
	--debian) debian=yes ;;
	--demo) demo=yes ;;
	*) die "unknown option $option: the options are -q, --demo and --debian" ;;
	esac
done

command -v docker >/dev/null || die "no docker command: install Docker Engine and its command line"
problem=$(docker version 2>&1 >/dev/null) ||
	die "the Docker Engine does not answer: start it, or add yourself to its group ($(echo "$problem" | tail -n 1))"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
if [ -n "$debian" ]; then
	ensure DEBIAN_IMAGE "$debian_image" "$local_debian" make_debian
else
	ensure BASE_IMAGE "$base_image" "$local_base" make_base
	ensure GO_IMAGE "$go_image" "$local_go" make_go
fi
# compose reads the .env of the folder that it runs in.
for example in examples/*/compose.yaml; do
	[ -e "${example%/*}/.env" ] || ln -sf ../../.env "${example%/*}/.env"
done
