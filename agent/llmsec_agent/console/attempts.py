"""Guesses at a login: whoever guesses waits, others do not."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

# A wrong answer takes this long to come. It holds its place meanwhile: an address has four guesses a second at most, all together have sixteen.
HELD_S: Final = 1.0
_OF_ONE_ADDRESS: Final = 4
_OF_ALL: Final = 16
# Wrong ones of a name from one address before the next has to wait: a second, then twice as long each time.
FREE: Final = 5
_LONGEST_S: Final = 60.0
_FORGOTTEN_S: Final = 900.0
_MOST_KEPT: Final = 4096


class Attempts:
    """What was tried, in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: Counter[str] = Counter()
        self._wrong: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()  # how many, and when the last one was
        self.places = asyncio.Semaphore(_OF_ALL)

    @contextlib.contextmanager
    def of(self, address: str) -> Iterator[bool]:
        """Whether this address may try one more meanwhile."""
        self._under_way[address] += 1
        try:
            yield self._under_way[address] <= _OF_ONE_ADDRESS
        finally:
            self._under_way[address] -= 1
            self._under_way += Counter()

    def wait_s(self, address: str, name: str) -> float:
        """How long this name cannot be tried from there. A token has no name: it is too long for guesses, and its owner is never shut out."""
        count, at = self._wrong.get((address, name), (0, 0.0))
        if not name or count < FREE or self._clock() - at > _FORGOTTEN_S:
            return 0.0
        return max(0.0, at + min(_LONGEST_S, 2.0 ** min(count - FREE, 10)) - self._clock())

    def failed(self, address: str, name: str) -> None:
        count, at = self._wrong.pop((address, name), (0, 0.0))
        now = self._clock()
        self._wrong[address, name] = (count + 1 if now - at <= _FORGOTTEN_S else 1), now
        while len(self._wrong) > _MOST_KEPT:
            self._wrong.popitem(last=False)

    def passed(self, address: str, name: str) -> None:
        self._wrong.pop((address, name), None)


def address_of(host: str | None) -> str:
    """A client's, for counting. Of IPv6, whoever has one has all of its network."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or "somewhere"
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
