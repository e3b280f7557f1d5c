# shellcheck shell=sh
# The common part of the examples' tests; each sources it in its own folder. It runs
# a Compose project of its own, so that a stack that you have running is left alone,
# and takes it down at the end, also after a failure or a signal.

export COMPOSE_PROJECT_NAME="udsecho-examples-${PWD##*/}"
# Which compose: COMPOSE=docker-compose tests with the old one.
if [ -z "${COMPOSE:-}" ]; then
	COMPOSE=docker-compose
	if docker compose version >/dev/null 2>&1; then COMPOSE='docker compose'; fi
fi
# shellcheck disable=SC2086 # it may be two words
compose() { $COMPOSE "$@"; }

work=$(mktemp -d)
log=$work/log
took=$(date +%s)
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	status=$?
	trap - EXIT INT TERM
	if [ "$status" -ne 0 ]; then
		tail -n 30 "$log"
		echo '--- the services:'
		compose ps -a
		compose logs --tail 20
	fi
	mine=label=com.docker.compose.project=$COMPOSE_PROJECT_NAME
	# One that did not end in time would keep its volumes.
	docker ps -aq --filter "$mine" --filter label=com.docker.compose.oneoff=True | xargs -r docker rm -f >/dev/null
	compose down -v --remove-orphans >"$log" 2>&1 || { cat "$log"; status=1; }
	left=$(docker ps -aq --filter "$mine"; docker volume ls -q --filter "$mine"; docker network ls -q --filter "$mine")
	[ -z "$left" ] || { echo "left behind: $left"; status=1; }
	rm -rf "$work"
	[ "$status" -ne 0 ] || echo "ok: taken down after $(($(date +%s) - took)) s"
	exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

quietly() { "$@" >"$log" 2>&1; }
say() { echo "--- $*"; }
fail() { echo "FAIL: $*"; exit 1; }
container() { # container SERVICE: its id
	docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"
}

# equal WHAT GOT WANT
equal() {
	[ "$2" = "$3" ] || fail "$1: got
$2
but want
$3"
}
# contains WHAT GOT WANT
contains() {
	case $2 in *"$3"*) ;; *) fail "$1: got
$2
without
$3" ;; esac
}

# readme_command and readme_output are the README's first command and first output.
readme_command() { sed -n 's/^    //p' README.md | sed "1!d; s/docker compose/compose/g"; }
# shellcheck disable=SC2016 # it is a fence
readme_output() { sed -n '/^```text/,/^```/p' README.md | sed '1d; /^```/,$d'; }

# eventually COMMAND...: it succeeds, for which it has two minutes.
eventually() {
	late=$(($(date +%s) + 120))
	until "$@"; do
		[ "$(date +%s)" -lt "$late" ] || fail "not within two minutes: $*"
		sleep 0.2
	done
}

# one_off SERVICE [COMMAND...]: its output, and standard error, in a container of
# its own beside the running ones, for at most 30 s; $user is its user.
# shellcheck disable=SC2086 # see above
one_off() { timeout 30 $COMPOSE run --rm --no-deps -T ${user:+--user "$user"} "$@" 2>&1 || true; }
