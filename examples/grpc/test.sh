#!/bin/sh
set -eu
cd "$(dirname "$0")"
# shellcheck source=examples/lib.sh
. ../lib.sh

id() { container "$1" | cut -c 1-12; } # what the server calls itself
in_client() { compose run --rm --no-deps -T client "$@" >"$log" 2>&1; }
logged() { docker logs "$load" 2>&1 | grep -q "$1"; }

quietly compose build
say "the README's command"
equal 'the client' "$(eval "$(readme_command)" 2>"$log" | tr -d '\r')" "$(readme_output | sed "s/[0-9a-f]*\$/$(id server)/")"
equal 'the socket' "$(compose exec -T server stat -c '%A %u:%g' /run/grpc/socket)" 'srw-rw---- 10001:10000'
equal 'TCP sockets' "$(compose exec -T server cat /proc/net/tcp /proc/net/tcp6 | grep -c :)" 0

say 'the kernel says who calls'
contains 'another user' "$(user=10003:10000 one_off client client)" 'PermissionDenied desc = uid 10003 is not permitted'
contains 'another group' "$(user=10002:10003 one_off client client health)" 'connect: permission denied'
contains 'another server' "$(one_off client client -require 10003 health)" 'the server runs as uid 10001, not as one of [10003]'
contains 'a client that replaces the socket' "$(one_off client rm -f /run/grpc/socket)" 'Read-only file system'

say 'three takeovers under load'
load=$(compose run -d --no-deps client client load 2>"$log" | tr -d '\r')
eventually logged "served by $(id server)"
for _ in 1 2 3; do
	old=$(container server)
	quietly docker update --restart=no "$old"
	quietly compose up -d --no-deps --no-recreate --scale server=2 server
	equal 'the old server' "$(docker wait "$old")" 0
	quietly docker rm "$old"
	eventually logged "served by $(id server)"
done
quietly docker stop "$load"
docker logs "$load"
contains 'the load' "$(docker logs "$load" 2>&1)" ' calls, 0 failed'

say 'stopped, killed, and started again'
quietly compose stop server
equal 'the exit status' "$(docker inspect -f '{{.State.ExitCode}}' "$(container server)")" 0
in_client test ! -e /run/grpc/socket || fail 'the socket is left behind'
quietly compose start server
in_client client
quietly compose kill -s KILL server
in_client test -S /run/grpc/socket || fail 'no socket is left behind'
quietly compose start server
in_client client
