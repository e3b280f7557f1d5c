#!/bin/sh
set -eu
cd "$(dirname "$0")"
# shellcheck source=examples/lib.sh
. ../lib.sh
picture=$work/picture.png

screenshot() { compose run --rm --no-deps -T screenshot >"$picture" 2>"$log"; }
eyes_are_back() { screenshot && cmp -s "$picture" screenshot.png; }

quietly compose build
say "the README's command"
eval "$(readme_command | sed "s,eyes.png,$picture,")" 2>"$log"
cmp "$picture" screenshot.png || fail "the picture is not the README's: look at both"

say 'it shows the client: without it there is another picture'
quietly compose stop xeyes
screenshot
if cmp -s "$picture" screenshot.png; then fail 'the picture shows a client that is not there'; fi
quietly compose start xeyes
eventually eyes_are_back

say 'the socket is the only way'
# shellcheck disable=SC2016 # awk's
equal 'listening Unix sockets' "$(compose exec -T xserver awk '$4 == "00010000" { print $8 }' /proc/net/unix)" /tmp/.X11-unix/X0
equal 'TCP sockets' "$(compose exec -T xserver cat /proc/net/tcp /proc/net/tcp6 | grep -c :)" 0
contains 'another group' "$(user=10003:10003 one_off screenshot xwd -root -silent)" 'unable to open display'

say 'a second X server does not get the display'
one_off xserver >"$log" 2>&1
eyes_are_back || fail 'the first one has lost its socket'

say 'the X server restarted, and killed: its client comes back'
quietly compose restart xserver
eventually eyes_are_back
quietly compose kill -s KILL xserver
quietly compose start xserver
eventually eyes_are_back
