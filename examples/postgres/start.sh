#!/bin/sh
# Makes the cluster the first time, then becomes PostgreSQL, as process 1; options
# are PostgreSQL's.
set -eu
data=/var/lib/postgresql/data

# PostgreSQL's own lock files name a process, and in a container that is always
# process 1: a second PostgreSQL would mistake a running one's lock for its own old
# one. The kernel frees these two locks when process 1 dies, however it dies.
umask 077 # a client that could read the files could hold the locks
exec 8>>/var/run/postgresql/lock 9>>/var/lib/postgresql/lock
if ! flock -n 8 || ! flock -n 9; then
	echo 'start.sh: another PostgreSQL serves this socket or this data: stop it first' >&2
	exit 1
fi

if [ ! -d "$data" ]; then
	# Under another name until it is complete, so that a kill on the way leaves nothing half made.
	rm -rf "$data.new"
	initdb --pgdata="$data.new" --username=db --auth=peer --locale=C.UTF-8 >/dev/null
	# No password: pg_hba.conf leaves it to the kernel who may be app.
	printf '%s\n' 'CREATE ROLE app LOGIN' 'CREATE DATABASE app OWNER app' |
		postgres --single -c exit_on_error=true -D "$data.new" postgres >/dev/null
	mv "$data.new" "$data"
fi
exec postgres -D "$data" -c config_file=/etc/postgresql/postgresql.conf "$@"
