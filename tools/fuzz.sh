#!/bin/sh
# Runs one fuzz target after another for a while, and prints a line for each.
# Minimizing an interesting input gets few tries, because it takes most of the time.
#
#     tools/fuzz.sh 60s
set -eu
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
targets=$(grep -rE --include='*_test.go' '^func Fuzz' . | sed 's|/[^/]*:func \(Fuzz[A-Za-z0-9_]*\).*| \1|' | sort)
status=0
while read -r package target; do
	verdict=ok
	if ! go test "$package" -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 100x -parallel 2 >"$log" 2>&1; then
		# Until Go 1.27 a run may end in this though nothing was found,
		# go.dev/issue/75804. What is found is written to testdata.
		if grep -q '^    context deadline exceeded$' "$log" && ! grep -q 'Failing input\|^panic' "$log"; then
			verdict='ok (stopped late)'
		else
			verdict=FAILED
			status=1
			cat "$log"
		fi
	fi
	echo "$package $target: $verdict, $(sed -n 's/^fuzz: elapsed: \([^,]*\), execs: \([0-9]*\).*/\2 inputs in \1/p' "$log" | tail -n 1)"
done <<-end
	$targets
end
exit "$status"
