"""Prints the answer to an HTTP request: python3 fetch.py SOCKET PATH"""
import http.client
import socket
import sys


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(sys.argv[1])


connection = Connection("localhost")  # the Host header: the socket has no name
connection.request("GET", sys.argv[2])
response = connection.getresponse()
sys.stdout.buffer.write(response.read())
sys.exit(response.status != 200)
