# shellcheck shell=sh
# The common part of make demo and make bench, which source it in the project's
# directory. It runs $COMPOSE_PROJECT_NAME, so that a stack that you have running is
# left alone, and takes it down at the end, also after a failure or a signal.

if docker compose version >/dev/null 2>&1; then
	compose() { docker compose "$@"; }
elif command -v docker-compose >/dev/null; then
	compose() { docker-compose "$@"; }
else
	echo 'compose: neither "docker compose" nor "docker-compose" is here: install the package docker-compose-plugin' >&2
	exit 1
fi
tools/offline/base.sh -q ${base:+"$base"}

log=$(mktemp)
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	status=$?
	trap - EXIT INT TERM
	[ "$status" -eq 0 ] || tail -n 30 "$log" >&2
	compose down -v >"$log" 2>&1 || { cat "$log" >&2; status=1; }
	rm -f "$log"
	[ "$status" -ne 0 ] || echo '--- taken down: no container, volume or network is left'
	exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

quietly() {
	if [ -t 2 ]; then "$@" >&2; else "$@" >"$log" 2>&1; fi
}
container() { # container SERVICE: its id
	docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"
}
