#!/bin/bash
# Runs every command of the documents, from top to bottom, in a fresh clone, and
# prints each with its result. `make documents` calls it. What it skips it names,
# with the reason; it exits with 1 if a command fails.
#
# A command is an indented block of a document, or a fenced block of sh.
set -u
cd "$(dirname "$0")/.." || exit 1
tools/need.sh 'docker compose' || exit 1
tools/need.sh --tests
work=$(mktemp -d)
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	status=$?
	trap - EXIT INT TERM
	stop
	docker compose down --volumes --rmi local >/dev/null 2>&1
	cd /
	rm -rf "$work"
	exit "$status"
}
set -m # each job is a process group, which `go run` and its program are in
stop() { # ends what the documents leave in the background
	local job
	{ for job in $(jobs -p); do kill -- "-$job"; done; wait; } 2>/dev/null
}
trap finish EXIT
trap 'exit 1' INT TERM

git clone -q . "$work/clone" || exit 1
[ ! -e .env ] || cp .env "$work/clone/" # the base images of this machine
cd "$work/clone" || exit 1
export COMPOSE_PROJECT_NAME=udsecho-documents
head -c 1000000 /dev/urandom >file # that somebody wants to have copied

# blocks DOCUMENT: its commands, each ended by a NUL.
blocks() {
	awk '
		/^```/ { if (fence) { if (fence == "sh") printf "%c", 0; fence = "" } else fence = substr($0, 4) == "sh" ? "sh" : "other"; next }
		fence == "sh" { print; next }
		fence == "" && /^    / && (open || blank) { print substr($0, 5); open = 1; next }
		open { printf "%c", 0; open = 0 }
		{ blank = /^$/ }
		END { if (open) printf "%c", 0 }' "$1"
}

# why COMMAND: the reason to skip it, if there is one.
why() {
	case $1 in
	*kubectl* | *kubernetes*) echo 'it needs a cluster, or builds one: make kubernetes-test' ;;
	*swarm* | *'docker service'* | *cluster-demo*) echo 'it changes the engine, or starts three: go test -run TestCluster ./integration' ;;
	*'docker wait'*) echo 'it needs a healthy second server: TestComposeServiceIsReplacedUnderLoad' ;;
	*NAME*) echo 'NAME stands for a container, or a process' ;;
	*psql*) [ -S /var/run/postgresql/.s.PGSQL.5432 ] || echo 'it needs a running PostgreSQL' ;;
	*tcp:127.0.0.1:8080*) echo 'it needs a service at port 8080: examples/one-door/test.sh' ;;
	*socat*) command -v socat >/dev/null && nc -h 2>&1 | grep -q OpenBSD || echo 'it needs socat and nc of OpenBSD' ;;
	systemd-socket-activate*) command -v systemd-socket-activate >/dev/null || echo 'it needs systemd-socket-activate' ;;
	*'make test'* | *'go test'* | 'make fuzz') echo 'CI runs it by itself' ;;
	'make vuln') echo 'it needs the database of vulnerabilities' ;;
	esac
}

failed=0
for document in README.md docs/learn.md docs/debugging.md docs/design.md docs/deploy.md docs/operating.md docs/options.md docs/performance.md docs/scale.md SECURITY.md CONTRIBUTING.md; do
	stop # the terminals of the last one
	if [ "$document" = docs/operating.md ]; then server --log-level error & fi # for its transfer
	while IFS= read -r -d '' command; do
		command=${command%$'\n'}
		reason=$(why "$command")
		if [ -n "$reason" ]; then
			printf 'skipped  %s: %s\n         (%s)\n' "$document" "${command//$'\n'/$'\n         '}" "$reason"
			continue
		fi
		case $command in
		*' &'*) eval "$command" >"$work/log" 2>&1 </dev/null ;;
		'server '* | 'go run ./examples/echo/server' | 'uds forward'* | systemd-socket-activate*) # until the next one
			stop
			eval "exec $command" >"$work/log" 2>&1 &
			timeout 60 tail -n +1 -f --pid=$! "$work/log" | grep -q -e 'waiting for a' -e 'Listening on' # it serves, or has ended
			;;
		*) eval "$command" >"$work/log" 2>&1 </dev/null ;;
		esac
		status=$?
		if [ "$status" -eq 0 ]; then
			printf 'ok       %s: %s\n' "$document" "${command//$'\n'/$'\n         '}"
		else
			printf 'FAILED   %s: %s\n' "$document" "${command//$'\n'/$'\n         '}"
			tail -n 20 "$work/log" | sed 's/^/         | /'
			failed=1
		fi
	done < <(blocks "$document")
done
exit "$failed"
