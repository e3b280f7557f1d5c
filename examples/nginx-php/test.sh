#!/bin/sh
set -eu
cd "$(dirname "$0")"
export PORT="${PORT:-18080}"
# shellcheck source=examples/lib.sh
. ../lib.sh

page() { curl -s --max-time 5 "http://localhost:$PORT"; }
page_is_back() { [ "$(page)" = "$(readme_output)" ]; }
web_started() { docker inspect -f '{{.State.StartedAt}}' "$(container web)"; }

quietly compose build
say "the README's command"
equal 'the page' "$(eval "$(readme_command | sed "s/8080/$PORT/")" 2>"$log")" "$(readme_output)"
equal 'the socket' "$(compose exec -T php stat -c '%A %u:%g' /run/php/fpm.sock)" 'srw-rw---- 10001:10000'

say 'another group stays outside'
contains 'PHP for 10003' "$(user=10003:10003 one_off php sh -c 'REQUEST_METHOD=GET cgi-fcgi -bind -connect /run/php/fpm.sock')" 'Could not connect'

say 'PHP restarted: nginx, which is not, finds the new socket'
before=$(web_started)
quietly compose restart php
eventually page_is_back

say 'PHP killed: the socket stays behind, and is replaced'
quietly compose kill -s KILL php
compose exec -T web test -S /run/php/fpm.sock || fail 'no socket is left behind'
contains 'without PHP' "$(page)" '502 Bad Gateway'
quietly compose start php
eventually page_is_back
equal "the time of nginx's start" "$(web_started)" "$before"
