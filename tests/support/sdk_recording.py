"""An instrumented client's records, and those of the wire that it spoke over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from llmsec_analyzer.worker.child import ChildDetector, StartDetector
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_trace.config import InstrumentationConfig
from llmsec_trace.destinations.callback import Callback
from llmsec_trace.recorder import Recorder
from support.replay import KEY

# What may differ: where and when it was seen, and by whom; what only the SDK knows.
MAY_DIFFER = {
    "exchange_id", "client", "server", "process", "node", "capture_kind", "tags", "trace_id",
    "started_ns", "first_byte_ns", "first_token_ns", "ended_ns", "ttft_ms", "itl_ms_p50", "itl_ms_p95", "output_tokens_per_s",
}  # fmt: skip


class Recording:
    """`records` after `flush`."""

    def __init__(
        self, config: InstrumentationConfig | None = None, *, detects: bool = False, start_detector: StartDetector = ChildDetector
    ) -> None:
        self.records: list[Exchange] = []
        self.recorder = Recorder(
            config or InstrumentationConfig(),
            [Callback(self.records.append)],
            fingerprinter(KEY),
            detects=detects,
            start_detector=start_detector,
            grace_s=0.0,
        )

    def flush(self) -> list[Exchange]:
        assert self.recorder.flush(20)
        assert self.recorder.stats().faults == 0
        return sorted(self.records, key=lambda record: record.started_ns or 0)


@contextmanager
def recording(
    config: InstrumentationConfig | None = None, *, detects: bool = False, start_detector: StartDetector = ChildDetector
) -> Iterator[Recording]:
    made = Recording(config, detects=detects, start_detector=start_detector)
    try:
        yield made
    finally:
        made.recorder.close()


def differences(ours: Exchange, theirs: Exchange) -> dict[str, tuple[Any, Any]]:
    left, right = msgspec.to_builtins(ours), msgspec.to_builtins(theirs)
    return {name: (left[name], right[name]) for name in left if name not in MAY_DIFFER and left[name] != right[name]}
