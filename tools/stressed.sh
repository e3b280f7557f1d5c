#!/bin/sh
# Prints the tests that make stress runs: those that testkit.Count, Stress or
# StressOnly makes longer than make test, directly or through a function or a
# variable of their package. First the packages, then -run and a pattern of names.
set -eu
cd "$(dirname "$0")/.."

packages='' names=''
for dir in $(git grep -lE 'testkit\.(Count|Stress)' -- '*_test.go' | xargs -n 1 dirname | sort -u); do
	found=$(awk '
		# What each declaration at the top level mentions.
		/^func / { name = $2; sub(/[(\[].*/, "", name); if ($2 ~ /^\(/) { name = $4; sub(/\(.*/, "", name) } }
		/^var [a-z]/ { name = $2 }
		/^\t[a-zA-Z]+ += testkit\./ && !infunc { name = $1 }
		/^func / { infunc = 1 }
		name { text[name] = text[name] "\n" $0; if ($0 ~ /testkit\.(Count|Stress)/) long[name] = 1 }
		/^}/ { infunc = 0; name = "" }
		END {
			do {
				more = 0
				for (n in text) if (!(n in long)) for (l in long)
					if (l !~ /^Test/ && text[n] ~ "(^|[^a-zA-Z_.])" l "([^a-zA-Z_]|$)") { long[n] = 1; more = 1; break }
			} while (more)
			for (n in long) if (n ~ /^(Test|Fuzz)/) print n
		}' "$dir"/*_test.go | sort)
	[ -z "$found" ] || packages="$packages ./$dir" names="$names $found"
done
# shellcheck disable=SC2086 # several names
echo "$packages -run ^($(echo $names | tr ' ' '|'))\$"
