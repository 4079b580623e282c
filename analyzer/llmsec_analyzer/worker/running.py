"""One detection process that runs, as the decoder sees it, and how much may wait for it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from llmsec_analyzer.worker.child import Detector
from llmsec_analyzer.worker.fair import Waiting
from llmsec_analyzer.worker.pipe import Pipe
from llmsec_analyzer.worker.protocol import Ready, Start, Totals
from llmsec_analyzer.worker.supervisor import BACK_OFF_S, RESTARTS


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much waits for the detection process, and how long for what."""

    queue_bytes: int = 32 << 20  # of messages and of exchanges without a report
    exchanges: int = 65_536  # of a live capture that wait for the one before them
    # Of a live capture, so much is under way to the process; the rest waits in its lines, so that nobody waits behind a flood.
    under_way_bytes: int = 256 << 10
    send_at_bytes: int = 64 << 10
    # An exchange is given up after so long, and the process taken for stuck: some seconds, and more for a long text. A replay's
    # machine may be busy with more than us.
    patience_s: float = 10.0
    patience_of_replay_s: float = 30.0
    start_s: float = 60.0
    # At its end, a live capture waits so long for all that is still out; a command that was interrupted, so long.
    drain_s: float = 10.0
    hurry_s: float = 1.0
    restarts: int = RESTARTS
    back_off_s: tuple[float, ...] = BACK_OFF_S


class Running:
    """One process and what it has in hand: sent and without an answer, in the order it was sent."""

    def __init__(self, start: Start, detector: Detector, now: float) -> None:
        self.start = start
        self.pipe = Pipe(detector)
        self.pipe.send(start)
        self.begun = self.progress = now
        self.ready: Ready | None = None
        self.totals = Totals({}, 0)
        self.sent: OrderedDict[int, Waiting] = OrderedDict()
        self.sent_bytes = 0
