"""The shipped captures, as frames."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from llmsec_tap.capture.files.pcap import CaptureReader

FIXTURES = Path(__file__).parents[2] / "fixtures" / "pcap"
LIVE = FIXTURES / "live" / "llama-server.pcap.gz"


def live_frames() -> list[tuple[int, bytes]]:
    frames: list[tuple[int, bytes]] = []

    class Consumer:
        def capture_begins(self, ts_ns: int) -> None:
            pass

        def handler(self, linktype: int) -> Callable[[int, bytes, int, int, int], None]:
            return lambda ts, buffer, start, end, on_wire: frames.append((ts, buffer[start:end]))

    CaptureReader(Consumer()).read_stream(io.BytesIO(LIVE.read_bytes()), str(LIVE))
    return frames
