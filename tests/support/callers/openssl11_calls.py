"""Thirteen calls over OpenSSL 1.1's own functions, one connection each: URL, certificate, the library's path; output as plain.py's.

The library is one that a wheel carries: nothing of it is Python's own ssl module.
"""

import ctypes
import json
import re
import socket
import sys
import time
from pathlib import Path

url, cafile, library = sys.argv[1:4]
(crypto,) = Path(library).parent.glob("libcrypto-*.so.1.1")  # the wheel has no search path of its own for it
ctypes.CDLL(str(crypto))
openssl = ctypes.CDLL(library)
time.sleep(0.5)  # a library that no process had before takes the tap some milliseconds to find (docs/capture.md)
pointer, text = ctypes.c_void_p, ctypes.c_char_p
for name, result, arguments in (
    ("TLS_client_method", pointer, ()),
    ("SSL_CTX_new", pointer, (pointer,)),
    ("SSL_CTX_load_verify_locations", ctypes.c_int, (pointer, text, text)),
    ("SSL_CTX_set_verify", None, (pointer, ctypes.c_int, pointer)),
    ("SSL_new", pointer, (pointer,)),
    ("SSL_set_fd", ctypes.c_int, (pointer, ctypes.c_int)),
    ("SSL_connect", ctypes.c_int, (pointer,)),
    ("SSL_write", ctypes.c_int, (pointer, text, ctypes.c_int)),
    ("SSL_read", ctypes.c_int, (pointer, pointer, ctypes.c_int)),
    ("SSL_shutdown", ctypes.c_int, (pointer,)),
    ("SSL_free", None, (pointer,)),
):
    function = getattr(openssl, name)
    function.restype, function.argtypes = result, arguments

host, port = re.fullmatch(r"https://(.+):(\d+)", url).groups()
context = openssl.SSL_CTX_new(openssl.TLS_client_method())
assert openssl.SSL_CTX_load_verify_locations(context, cafile.encode(), None) == 1
openssl.SSL_CTX_set_verify(context, 1, None)
for number in range(13):
    asked = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": f"call {number} by openssl11"}], "max_tokens": 12}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nx-call: openssl11-{number}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        tls = openssl.SSL_new(context)
        openssl.SSL_set_fd(tls, connection.fileno())
        assert openssl.SSL_connect(tls) == 1
        request = head.encode() + asked
        assert openssl.SSL_write(tls, request, len(request)) == len(request)
        answer, room = b"", ctypes.create_string_buffer(16384)
        while (got := openssl.SSL_read(tls, room, len(room))) > 0:
            answer += room.raw[:got]
        openssl.SSL_shutdown(tls)
        openssl.SSL_free(tls)
    head_of_answer, _, body = answer.partition(b"\r\n\r\n")
    if b"chunked" in head_of_answer.lower():
        body = b"".join(re.findall(rb"[0-9a-f]+\r\n(.+)\r\n", body))
    print(json.dumps({"call": number, "body": body.decode()}), flush=True)
