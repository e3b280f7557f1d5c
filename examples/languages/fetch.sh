#!/bin/sh
# Prints the answer to an HTTP request: sh fetch.sh SOCKET PATH
exec curl -fsS --unix-socket "$1" "http://localhost$2"
