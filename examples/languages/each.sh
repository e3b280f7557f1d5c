#!/bin/sh
# Runs a program in each language: each.sh echo|fetch SOCKET ARGUMENT
program=$1 failed=''
shift
for command in "python3 $program.py" "node $program.js" "java $program.java" "./$program" "sh $program.sh"; do
	printf '%-17s' "$command"
	$command "$@" 2>&1 || failed="$failed $?"
	[ "$program" = fetch ] || echo
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
