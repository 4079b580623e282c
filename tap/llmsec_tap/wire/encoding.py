"""A body's content codings undone as it streams (RFC 9110 8.4.1), also stacks of them.

A decoder takes coded bytes and gives what they decode to so far, in bounded pieces; it never raises. After damage or a bomb it
gives nothing more, says so once through `on_anomaly`, and `fault` and `undecoded` tell what and where. The header is a hint: where
the first bytes are not of the coding that it names (servers ignore it, so the peer reads them plain), they are taken as they are.

Bombs: what each stage gives is bounded by limits.MAX_EXPANSION_RATIO times the bytes on the wire, above EXPANSION_FLOOR_BYTES.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from llmsec_tap import limits
from llmsec_tap.anomalies import AnomalyName, OnAnomaly
from llmsec_tap.wire.codings import Coding, Plain, choose

_SLICE = 64 * limits.KIB
_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "br": "br", "zstd": "zstd"}


class _Stage:
    """One coding of the stack: its kind is settled by its first bytes."""

    __slots__ = ("_anomaly", "_coding", "_first", "_name", "produced")

    def __init__(self, name: str, on_anomaly: OnAnomaly) -> None:
        self._name = name
        self._anomaly = on_anomaly
        self._coding: Coding | None = None
        self._first = b""
        self.produced = 0

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        return (*self._coding.errors, MemoryError) if self._coding is not None else ()

    @property
    def held(self) -> int:
        return 0 if self._coding is None else min(self._coding.window, self.produced)

    def feed(self, data: bytes, *, is_end: bool = False) -> None:
        if self._coding is None:
            data = self._first + data
            self._coding = choose(self._name, data, is_end=is_end)
            if self._coding is None:
                self._first = data
                return
            self._first = b""
            if isinstance(self._coding, Plain) and data:
                self._anomaly("content_encoding_absent")
        self._coding.feed(data)

    def read(self) -> bytes:
        if self._coding is None:
            return b""
        piece = self._coding.read()
        self.produced += len(piece)
        return piece


class ContentDecoder:
    """Decodes the codings of one Content-Encoding value, the last applied first."""

    __slots__ = ("_anomaly", "_consumed", "_stages", "fault", "undecoded")

    def __init__(self, names: list[str], on_anomaly: OnAnomaly) -> None:
        self._stages = [_Stage(name, on_anomaly) for name in names]
        self._anomaly = on_anomaly
        self._consumed = 0
        self.fault: AnomalyName | Literal["gap"] | None = None  # why nothing more comes
        self.undecoded = b""  # of the last piece fed: what came from the fault on

    @property
    def held(self) -> int:
        """Bytes that the stages keep to look back at."""
        return sum(stage.held for stage in self._stages)

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _SLICE):
            if self.fault is not None:
                self.undecoded = data[start:]
                return
            piece = data[start : start + _SLICE]
            self._consumed += len(piece)
            self._stages[0].feed(piece)
            yield from self._pieces()
            if self.fault is not None:
                self.undecoded = data[start:]
                return

    def end(self) -> Iterator[bytes]:
        """The body is over: too few first bytes to tell a coding by are told by what there is."""
        for stage in list(self._stages):
            if self.fault is None:
                stage.feed(b"", is_end=True)
                yield from self._pieces()

    def gap(self) -> None:
        """Lost input: what follows cannot be decoded."""
        self.stop("gap")

    def stop(self, why: AnomalyName | Literal["gap"]) -> None:
        self.fault = self.fault or why
        self._stages.clear()

    def _pieces(self) -> Iterator[bytes]:
        last = len(self._stages) - 1
        while self.fault is None:
            piece = self._next(last)
            if not piece:
                return
            yield piece

    def _next(self, index: int) -> bytes:
        """The next piece of a stage, which takes what it needs from the one below it."""
        stage = self._stages[index]
        try:
            while not (piece := stage.read()):
                below = self._next(index - 1) if index else b""
                if not below:
                    return b""
                stage.feed(below)
        except stage.errors:
            self._fail("content_encoding_bad")
            return b""
        if stage.produced > limits.EXPANSION_FLOOR_BYTES and stage.produced > self._consumed * limits.MAX_EXPANSION_RATIO:
            self._fail("content_encoding_bomb")
            return b""
        return piece

    def _fail(self, name: AnomalyName) -> None:
        if self.fault is None:
            self.stop(name)
            self._anomaly(name)


def content_decoder(value: str, on_anomaly: OnAnomaly) -> ContentDecoder | None:
    """A decoder for a Content-Encoding header value, or None for `identity`, an unknown coding, or too many of them."""
    names = [name for name in (part.strip().lower() for part in value.split(",")) if name and name != "identity"]
    if not names:
        return None
    known = [_NAMES[name] for name in reversed(names[: limits.MAX_CONTENT_CODINGS + 1]) if name in _NAMES]
    if len(known) != len(names) or len(names) > limits.MAX_CONTENT_CODINGS:
        on_anomaly("content_encoding_unknown")
        return None
    return ContentDecoder(known, on_anomaly)
