#!/bin/sh
# Prints the compose command of this machine: v2 where it is, else v1.
if docker compose version >/dev/null 2>&1; then
	echo docker compose
elif command -v docker-compose >/dev/null; then
	echo docker-compose
else
	echo 'compose: neither "docker compose" nor "docker-compose" is here: install the package docker-compose-plugin' >&2
	exit 1
fi
