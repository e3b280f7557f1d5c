#!/bin/sh
# Compares the benchmarks of two commits, in turn so that both see the same
# machine:
#
#     bench/compare.sh OLD [NEW]     NEW is HEAD by default
set -eu
[ $# -ge 1 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
work=$(mktemp -d)
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
	trap - EXIT INT TERM
	for side in old new; do git worktree remove --force "$work/$side" 2>/dev/null || true; done
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

git worktree add -q --detach "$work/old" "$1"
git worktree add -q --detach "$work/new" "${2:-HEAD}"
for side in old new; do
	(cd "$work/$side" && go test -c -o "$work/$side.test" ./internal/echo)
done
i=0
while [ $((i += 1)) -le "${COUNT:-10}" ]; do
	for side in old new; do
		"$work/$side.test" -test.run '^$' -test.bench . -test.benchmem -test.benchtime "${BENCHTIME:-0.5s}" >>"$work/$side.txt"
	done
done
GOWORK=off go tool -modfile=tools/go.mod benchstat "old=$work/old.txt" "new=$work/new.txt"
