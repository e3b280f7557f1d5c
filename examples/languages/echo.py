"""Sends a message and prints the echo: python3 echo.py SOCKET MESSAGE"""
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode())
    connection.shutdown(socket.SHUT_WR)  # nothing more comes: the server ends its side too
    while chunk := connection.recv(16):
        sys.stdout.buffer.write(chunk)
