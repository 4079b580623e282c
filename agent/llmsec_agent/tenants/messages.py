"""Between a decoder and the resolver: whole MessagePack messages over a socket that keeps their bounds (SOCK_SEQPACKET)."""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from llmsec_agent.tenants.policy import TenantContext

# Answers of one message; with the longest names of tenants it stays far below what such a socket takes.
ANSWERS: Final = 64
MESSAGE_BYTES: Final = 1 << 17


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """Of one key. `failed`: nobody could be asked; else None says that no tenant has it."""

    fingerprint: str
    context: TenantContext | None = None
    failed: bool = False


_encode = msgspec.msgpack.Encoder().encode
_questions = msgspec.msgpack.Decoder(list[str])
_answers = msgspec.msgpack.Decoder(list[Answer])


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_questions(sock: socket.socket, fingerprints: list[str]) -> None:
    sock.send(_encode(fingerprints))


def send_answers(sock: socket.socket, answers: list[Answer]) -> None:
    for start in range(0, len(answers), ANSWERS):
        sock.send(_encode(answers[start : start + ANSWERS]))


def send_hello(sock: socket.socket) -> None:
    """The resolver has started."""
    sock.send(_encode([]))


def receive_questions(sock: socket.socket) -> list[str]:
    """Raises EOFError where the other end is gone."""
    return _questions.decode(_received(sock))


def receive_answers(sock: socket.socket) -> list[Answer]:
    """Raises EOFError where the other end is gone."""
    return _answers.decode(_received(sock))


def _received(sock: socket.socket) -> bytes:
    data = sock.recv(MESSAGE_BYTES)
    if not data:
        raise EOFError
    return data
