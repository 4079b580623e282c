"""The life of the detection process: whether there is one, when a new one may begin, and which texts ended it."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import Enum
from hashlib import blake2b

# Deaths of the process in an hour after which a new one begins at once; after that it begins later and later, but always again.
RESTARTS = 3
BACK_OFF_S = (30.0, 120.0, 600.0)
_RESTARTS_IN_S = 3600.0
# Texts that were in hand when a process died, by hash: what was so twice is set aside.
_MAX_SUSPECTS = 1024
_DEATHS_UNTIL_SET_ASIDE = 2


class Life(Enum):
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"  # until `retry_at`
    OFF = "off"  # somebody ended it: no new one begins


class Supervisor:
    """Times are seconds of a clock that never goes back."""

    def __init__(self, restarts: int = RESTARTS, back_off_s: Sequence[float] = BACK_OFF_S) -> None:
        self._restarts = restarts
        self._back_off_s = back_off_s
        self.life = Life.LOST
        self.retry_at = -math.inf
        self.deaths_total = 0
        self._deaths: deque[float] = deque(maxlen=restarts + len(back_off_s))

    def may_start(self, now: float) -> bool:
        return self.life is Life.LOST and now >= self.retry_at

    def started(self) -> None:
        self.life = Life.STARTING

    def ready(self) -> None:
        self.life = Life.READY

    def lost(self, now: float) -> float:
        """It died, or did not even start. The seconds until another may begin."""
        self.deaths_total += 1
        self._deaths.append(now)
        while self._deaths[0] < now - _RESTARTS_IN_S:
            self._deaths.popleft()
        beyond = len(self._deaths) - self._restarts
        pause = 0.0 if beyond <= 0 else self._back_off_s[min(beyond, len(self._back_off_s)) - 1]
        self.life, self.retry_at = Life.LOST, now + pause
        return pause

    def off(self) -> None:
        self.life = Life.OFF


class Quarantine:
    """Texts by keyed hash. The least recently accused are forgotten first."""

    def __init__(self, key: bytes) -> None:
        self._key = key[:64]
        self._suspects: OrderedDict[bytes, int] = OrderedDict()
        self.set_aside_total = 0

    def __len__(self) -> int:
        return len(self._suspects)

    def accuse(self, text: str) -> str | None:
        """It was in hand when a process died. Its hash where it is set aside from now on."""
        name = self._hash(text)
        count = self._suspects.pop(name, 0) + 1
        self._suspects[name] = count
        if len(self._suspects) > _MAX_SUSPECTS:
            self._suspects.popitem(last=False)
        if count != _DEATHS_UNTIL_SET_ASIDE:
            return None
        self.set_aside_total += 1
        return name.hex()

    def holds(self, text: str) -> bool:
        return self._suspects.get(self._hash(text), 0) >= _DEATHS_UNTIL_SET_ASIDE

    def _hash(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=self._key).digest()
