"""For who looks at a folder's store now: what ends and what is found, before a part has it (llmsec_tap.storage.live_feed)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmsec_agent.events import Ended, Found
from llmsec_tap.counters import Sample
from llmsec_tap.storage.live_feed import FeedWriter, line_of, line_of_finding

_encoder = msgspec.json.Encoder()


class LiveSink:
    name = "live"
    takes_events = True

    def __init__(self, feed: FeedWriter) -> None:
        self._feed = feed

    def encode(self, item: Any) -> tuple[bytes, int]:
        if not self._feed.is_watched:
            return b"", 0
        if isinstance(item, Ended):
            line = line_of(item.exchange)
        elif isinstance(item, Found):
            line = line_of_finding(item.finding, item.ts_ns)
        else:
            return b"", 0
        encoded = _encoder.encode(line) + b"\n"
        return encoded, len(encoded)

    def write(self, items: Sequence[bytes]) -> int:
        self._feed.write(items)
        return len(items)

    def tick(self) -> None:
        self._feed.look()

    def close(self) -> None:
        self._feed.close()

    def samples(self) -> Iterable[Sample]:
        return ()
