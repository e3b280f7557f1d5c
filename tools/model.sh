#!/bin/sh
# Checks the model of the takeover, uds/sock/takeover.pml: the protocol has to
# pass, and the one before it has to fail, with its counter-example.
set -eu
cd "$(dirname "$0")/../uds/sock"
../../tools/need.sh spin gcc

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp takeover.pml "$work"
cd "$work"

# shellcheck disable=SC2086 # several flags
search() { # search COMPILER-FLAG PAN-FLAG [SPIN-FLAGS]: prints what spin says
	spin ${3:-} -a takeover.pml >/dev/null
	cc -O2 -w "$1" -o pan pan.c
	./pan -m1000000 ${2:+"$2"}
}

for successors in -DWAITS -DGIVES_UP -DSTAYS; do
	search -DSAFETY '' "$successors" >safety
	search -DNP -l "$successors" >progress
	for report in safety progress; do
		grep -q 'errors: 0$' "$report" || { spin $successors -t -p takeover.pml; cat "$report"; exit 1; }
	done
	states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' safety)
	echo "takeover, $successors: $states states checked, 0 errors; every run ends"
done

for mistake in -DREMOVES '-DSTAYS -DEMFILE_ENDS' -DKEEPS; do
	search -DSAFETY '' "$mistake" >safety
	grep -q 'errors: 1$' safety || { echo "$mistake passes: the model shows nothing" >&2; exit 1; }
	echo "the library of before, $mistake: rejected, $(sed -n 's/^pan:[0-9]*: \(.*\) (at depth.*/\1/p' safety)"
done

search -DSAFETY '' -DPER_SOCKET >safety
grep -q 'errors: 1$' safety || { echo 'the protocol of before passes: the model shows nothing' >&2; exit 1; }
echo 'the protocol of before, each socket by itself: rejected, as in this run:'
spin -DPER_SOCKET -t -p takeover.pml |
	sed -n 's/^ *[0-9]*:.*proc *[0-9]* (\([A-Z][a-z]*\):1) takeover.pml:\([0-9]*\) (state [0-9]*)[[:space:]]*\[\(.*\)\]$/  \1, line \2: \3/p; s/^ *\(nobody serves.*\)/  \1/p' |
	grep -v 'Monitor\|else\|goto'
