"""The echo server of Python Module of the Week (pymotw.com, socket, uds): one client at a time, 16 bytes at a time.

    source.py PATH
"""
import socket
import sys

sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.bind(sys.argv[1])
sock.listen(1)
while True:
    connection, _ = sock.accept()
    with connection:
        while data := connection.recv(16):
            connection.sendall(data)
