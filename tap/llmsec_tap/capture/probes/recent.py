"""What a tap of months keeps of things that come and go: the last so many, each for so long."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Thing = TypeVar("_Thing", bound=Hashable)


class Recent(Generic[_Thing]):
    """A set that forgets: what was not added again for `age_s`, and beyond `most` what was added longest ago."""

    def __init__(self, most: int, age_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._age_s = age_s
        self._clock = clock
        self._added: OrderedDict[_Thing, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._added)

    def __contains__(self, thing: _Thing) -> bool:
        added = self._added.get(thing)
        return added is not None and self._clock() - added < self._age_s

    def add(self, thing: _Thing) -> bool:
        """Whether it was not in here."""
        is_new = thing not in self
        self._added[thing] = self._clock()
        self._added.move_to_end(thing)
        if len(self._added) > self._most:
            self._added.popitem(last=False)
        return is_new
