"""A capture in memory to exchanges, with the shield off: a decoder's defect fails the test."""

from __future__ import annotations

import io
from pathlib import Path

from llmsec_tap.capture.files.pcap import CaptureReader
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.tls.key_log import KeyLog

KEY = b"a key that only the tests know.."


def replay(capture: bytes | Path, *, ports: frozenset[int] | None = None, keys: KeyLog | None = None) -> tuple[list[Exchange], Pipeline]:
    exchanges: list[Exchange] = []
    pipeline = Pipeline(exchanges.append, fingerprinter(KEY), ports=ports, keys=keys, shield=False)
    reader = CaptureReader(pipeline)
    if isinstance(capture, Path):
        reader.read(str(capture))
    else:
        reader.read_stream(io.BytesIO(capture), "memory")
    pipeline.close()
    return exchanges, pipeline
