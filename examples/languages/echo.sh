#!/bin/sh
# Sends a message and prints the echo: sh echo.sh SOCKET MESSAGE
# -N: nothing more comes after the input, and the server ends its side too.
printf %s "$2" | nc -N -U "$1"
