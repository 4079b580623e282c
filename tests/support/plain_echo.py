"""tls_echo's answers over plain sockets, by each of the ways that programs move bytes: plain_echo.py MODE PORT [TLS_PORT CERT KEY].

| mode | reads | writes |
|---|---|---|
| threads, fork, asyncio | the standard library's servers | |
| both | as threads, and TLS on TLS_PORT by the same process | |
| read | read | write |
| vectors | readv into many small buffers | writev, some of the pieces empty |
| messages | recvmsg | sendmsg |
| bytes | recv, one byte at a time | send, one byte at a time |
| peek | recv with MSG_PEEK, then recv | send |
| nonblocking | recv after poll | send of what fits, to a small buffer |
| sendfile | recv | the head by send, the body by sendfile |
| uring | io_uring | io_uring |
| uring-sends | recv | io_uring |
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import select
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.io_uring import Ring
from support.tls_echo import Forking, Handler, _talk, reply

Read = Callable[[socket.socket], bytes]
Write = Callable[[socket.socket, list[bytes]], None]


def _readv(sock: socket.socket) -> bytes:
    buffers = [bytearray(size) for size in (0, 1, 2, 3, 500, 0, 70_000)]
    count = os.readv(sock.fileno(), buffers)
    return b"".join(buffers)[:count]


def _peeked(sock: socket.socket) -> bytes:
    sock.recv(65_536, socket.MSG_PEEK)
    return sock.recv(65_536)


def _polled(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with contextlib.suppress(BlockingIOError):
        return sock.recv(65_536)
    select.select([sock], [], [])
    return sock.recv(65_536)


def _write_whole(sock: socket.socket, pieces: list[bytes]) -> None:
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(sock.fileno(), rest) :]


def _writev(sock: socket.socket, pieces: list[bytes]) -> None:
    os.writev(sock.fileno(), [part for piece in pieces for part in (b"", piece[:3], piece[3:])])


def _sendmsg(sock: socket.socket, pieces: list[bytes]) -> None:
    assert sock.sendmsg(pieces) == sum(map(len, pieces))


def _byte_by_byte(sock: socket.socket, pieces: list[bytes]) -> None:
    for byte in b"".join(pieces):
        sock.send(bytes([byte]))


def _send_what_fits(sock: socket.socket, pieces: list[bytes]) -> None:
    rest = memoryview(b"".join(pieces))
    while rest:
        select.select([], [sock], [])
        with contextlib.suppress(BlockingIOError):
            rest = rest[sock.send(rest) :]


def _sendfile(sock: socket.socket, pieces: list[bytes]) -> None:
    sock.sendall(pieces[0])
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(pieces[1:]))
        file.flush()
        os.sendfile(sock.fileno(), file.fileno(), 0, file.tell())


WAYS: dict[str, tuple[Read, Write]] = {
    "read": (lambda sock: os.read(sock.fileno(), 65_536), _write_whole),
    "vectors": (_readv, _writev),
    "messages": (lambda sock: sock.recvmsg(65_536)[0], _sendmsg),
    "bytes": (lambda sock: sock.recv(1), _byte_by_byte),
    "peek": (_peeked, lambda sock, pieces: sock.sendall(b"".join(pieces))),
    "nonblocking": (_polled, _send_what_fits),
    "uring": (lambda sock: Ring().receive(sock), lambda sock, pieces: Ring().send(sock, b"".join(pieces))),
    "uring-sends": (lambda sock: sock.recv(65_536), lambda sock, pieces: Ring().send(sock, b"".join(pieces))),
    "sendfile": (lambda sock: sock.recv(65_536), _sendfile),
}


def _converse(sock: socket.socket, read: Read, write: Write) -> None:
    with sock, contextlib.suppress(OSError):
        held = b""
        while True:
            while b"\r\n\r\n" not in held:
                data = read(sock)
                if not data:
                    return
                held += data
            head, _, body = held.partition(b"\r\n\r\n")
            length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            while len(body) < length:
                body += read(sock)
            held = body[length:]
            kind, pieces = reply(body[:length])
            answer = b"".join(pieces)
            write(sock, [f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(answer)}\r\n\r\n".encode(), *pieces])


def _serve(port: int, way: tuple[Read, Write]) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_converse, args=(sock, *way), daemon=True).start()


async def _serve_asyncio(port: int) -> None:
    server = await asyncio.start_server(lambda r, w: _talk(r, w, 0), "127.0.0.1", port, limit=1 << 24, backlog=256)
    async with server:
        await server.serve_forever()


def main() -> None:
    mode, port = sys.argv[1], int(sys.argv[2])
    if mode in WAYS:
        _serve(port, WAYS[mode])
    elif mode == "asyncio":
        asyncio.run(_serve_asyncio(port))
    kind = Forking if mode == "fork" else http.server.ThreadingHTTPServer
    kind.request_queue_size = 128
    if mode == "both":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[4], sys.argv[5])
        encrypted = kind(("127.0.0.1", int(sys.argv[3])), Handler)
        encrypted.socket = context.wrap_socket(encrypted.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=encrypted.serve_forever, daemon=True).start()
    kind(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    main()
