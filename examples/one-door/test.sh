#!/bin/sh
set -eu
cd "$(dirname "$0")"
# shellcheck source=examples/lib.sh
. ../lib.sh

page='You came through the door.'
program() { one_off --entrypoint sh program -c "$1"; } # what the program can do
came() { [ "$(compose run --rm --no-deps -T program 2>"$log")" = "$page" ]; }
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(container "$1")"; }
# closed WHAT COMMAND WHY: the program gets this error.
closed() { contains "$1" "$(program "$2")" "$3"; }

quietly compose build
say "the README's command"
equal 'the program' "$(eval "$(readme_command)" 2>"$log" | tr -d '\r')" "$(readme_output)"

say 'every other way is closed'
api=$(address api)
other=$(address outside)
gateway=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}' "$(container api)")
# There is something to be found, for a container with a network.
compose exec -T outside httpd -p 8001 -h /etc
elsewhere=$(compose exec -T outside cat /etc/hostname)
equal 'another service, for its neighbour' "$(compose exec -T api wget -qO- "http://$other:8001/hostname")" "$elsewhere"
equal 'the service, for its neighbour' "$(compose exec -T outside wget -qO- http://api:8000)" "$page"
closed 'the service itself' "timeout 5 wget -qO- http://$api:8000" 'Network is unreachable'
closed 'its name' 'timeout 5 wget -qO- http://api:8000' "bad address 'api:8000'"
closed 'another service' "timeout 5 wget -qO- http://$other:8001/hostname" 'Network is unreachable'
closed 'another service, the door taken for a proxy' \
	"http_proxy=http://127.0.0.1:8080 timeout 5 wget -qO- http://$other:8001/hostname" '400 Bad Request'
closed 'the host' "timeout 5 wget -qO- http://$gateway" 'Network is unreachable'
closed 'a name server' "timeout 5 nslookup localhost.test $gateway" 'Network is unreachable'
closed 'a raw socket' "ping -c 1 -W 2 $gateway" 'permission denied'
# Leaves out connected sockets, those of the health check: no other process can
# connect to them.
# shellcheck disable=SC2016 # awk's
contains 'interfaces, routes, listeners, Unix sockets and socket files' "$(program 'echo all: $(ls /sys/class/net) \
	$(sed 1d /proc/net/route) $(cat /proc/net/tcp /proc/net/tcp6 | awk "\$4 == \"0A\" { print \$2 }") \
	$(awk "NR > 1 && (\$5 != \"0001\" || \$4 == \"00010000\")" /proc/net/unix) $(find / -xdev -type s 2>/dev/null) .')" 'all: lo 0100007F:1F90 .'

say 'the door lets in its inner half only'
ask="printf 'GET / HTTP/1.0\r\n\r\n' | uds send --connect stream:/run/uds/door -"
contains 'uid 10002' "$(one_off --entrypoint sh inside -c "$ask")" "$page"
case $(user=10003:10000 one_off --entrypoint sh inside -c "$ask") in *"$page"*) fail 'uid 10003 came in' ;; esac

say 'each part restarted'
for part in outside api inside; do
	quietly compose restart "$part"
	eventually came
done

say 'each part killed'
for part in outside api inside; do
	quietly compose kill -s KILL "$part"
	if came; then fail "it works without $part"; fi
	quietly compose start "$part"
	eventually came
done
