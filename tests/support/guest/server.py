"""Answers each connection once: `tls PORT` or `plain PORT`."""

import contextlib
import socket
import ssl
import sys

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n{"a":1}'

listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
context = None
if sys.argv[1] == "tls":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/guest/cert.pem", "/guest/key.pem")
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    with contextlib.suppress(OSError):
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        connection.recv(4096)
        connection.sendall(ANSWER)
        connection.close()
