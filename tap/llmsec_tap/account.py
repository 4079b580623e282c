"""One account of all bytes that are held for traffic: heads, out-of-order segments, bodies, frames, texts, requests that wait.

Each connection has a `Holding` and asks it before it keeps something. Holdings belong to shares, one for each pair of addresses.
When the account is full, the shares that hold more than the fair level give: their largest holdings are shed, until every share is
under the level and an eighth of the account is free. So whoever fills the account pays, and who holds little keeps it whole.

The fair level is max-min fairness: the largest level at which all shares, each cut to it, fit. What has a bound of its own (tables
of connections, segments out of order) is `fixed`: it counts, but is not shed.
Amounts are what CPython takes, not what the wire carried: see limits.CONNECTION_COST_BYTES and its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from llmsec_tap import limits

_BY_SIZE = attrgetter("held")


class _Share:
    __slots__ = ("held", "holdings", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.held = 0
        self.holdings: dict[Holding, None] = {}


class Holding:
    """What one connection holds. `shed` is called when it must give up what it can, and give it back."""

    __slots__ = ("_account", "held", "share", "shed")

    def __init__(self, account: Account, share: _Share, shed: Callable[[], None] | None) -> None:
        self._account = account
        self.share = share
        self.held = 0
        self.shed = shed

    def reserve(self, size: int) -> bool:
        """Room for so many bytes more (with a negative size, so many are given back). False: the one who asks leaves them out."""
        account = self._account
        self.held += size
        self.share.held += size
        account.held += size
        if size > 0 and account.held > account.limit and not account.make_room(self):
            self.reserve(-size)
            return False
        return True

    def close(self) -> None:
        """Give back all of it."""
        self.reserve(-self.held)
        share = self.share
        share.holdings.pop(self, None)
        if not share.holdings:
            self._account.forget(share.key)
        self.shed = None


class Entry:
    """The entry of one buffer, told its size now and then. Sizes under a step are part of what the connection costs."""

    __slots__ = ("_reserve", "size")
    STEP = limits.KIB

    def __init__(self, reserve: Callable[[int], bool]) -> None:
        self._reserve = reserve
        self.size = 0

    def set(self, size: int) -> bool:
        """False where there is no room for it: the buffer must be dropped, and the entry is nothing."""
        if size < self.STEP:
            size = 0
        elif -self.STEP < size - self.size < self.STEP:
            return True
        change = size - self.size
        if change and not self._reserve(change):
            self._reserve(-self.size)
            self.size = 0
            return False
        self.size = size
        return True


class Account:
    """`limit` bytes for everything together; `held` now, `cut` counts what was shed or refused."""

    def __init__(self, limit: int = limits.ACCOUNT_BYTES) -> None:
        self.limit = limit
        self.held = 0
        self.fixed = 0
        self.cut = 0
        self._shares: dict[str, _Share] = {}
        self._is_shedding = False
        self._level = 0.0
        self._level_until = -1  # the level holds as long as no more than this is held

    @property
    def max_connections(self) -> int:
        """What half of the account has room for."""
        return min(limits.MAX_CONNECTIONS, max(64, self.limit // 2 // limits.CONNECTION_COST_BYTES))

    def fix(self, size: int) -> None:
        """Take, or with a negative size give back, what its owner bounds."""
        self.fixed += size
        self.held += size

    def open(self, key: str, shed: Callable[[], None] | None = None) -> Holding:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(key)
        holding = Holding(self, share, shed)
        share.holdings[holding] = None
        return holding

    def forget(self, key: str) -> None:
        share = self._shares.get(key)
        if share is not None and not share.holdings:
            del self._shares[key]

    def make_room(self, asker: Holding) -> bool:
        """Shed what is over the fair level; False where the asker itself is the one to give."""
        if self._is_shedding:
            return True  # what is being shed is read and handed on first; it gives back in a moment
        own = asker.share
        if self.held <= self._level_until and own.held > self._level:
            self.cut += 1
            return False  # nothing has changed since it was refused before
        self._is_shedding = True
        try:
            self._level = level = self._fair_level(self.limit - self.limit // 8 - self.fixed)
            for share in [known for known in self._shares.values() if known.held > level]:
                self._shed(share, level, asker)
        finally:
            self._is_shedding = False
        if own.held <= level and self.held <= self.limit:
            return True
        self.cut += 1
        self._level_until = self.held + self.limit // 64
        return False

    def shed_all(self) -> None:
        """Give up everything that can be."""
        self._is_shedding = True
        try:
            for share in list(self._shares.values()):
                for holding in list(share.holdings):
                    if holding.shed is not None and holding.held:
                        self.cut += 1
                        holding.shed()
        finally:
            self._is_shedding = False

    def _shed(self, share: _Share, level: float, asker: Holding) -> None:
        for holding in sorted(share.holdings, key=_BY_SIZE, reverse=True):
            if share.held <= level or not holding.held:
                return
            if holding is not asker and holding.shed is not None:
                self.cut += 1
                holding.shed()

    def _fair_level(self, room: int) -> float:
        sizes = sorted(share.held for share in self._shares.values())
        for number, size in enumerate(sizes):
            if size * (len(sizes) - number) >= room:
                return max(0.0, room / (len(sizes) - number))
            room -= size
        return float(sizes[-1]) if sizes else 0.0


def no_account(_size: int) -> bool:
    """For parsers that stand alone."""
    return True
