"""Sums over a span of time, and what such sums usually are; in so few bytes that there may be one for each of many thousand tenants."""

from __future__ import annotations

import math
import struct
from statistics import median

import msgspec

HOUR_NS = 3_600_000_000_000
_HOURS = 168
# The epoch began on a Thursday; hour 0 of the week is Monday's first.
_FIRST_HOUR = 72
_RECENT = 32
# Of a normal distribution, the standard deviation in units of the MAD.
_SIGMA = 1.4826
# Of a normal distribution, the standard deviation in units of the mean of its upper half, its lower half counted as 0.
_SIGMA_OF_MEAN = 2.5066
_LEAST_COMPARED = 10
# Beyond so many of them, chance is no explanation for one window in a year.
_BEYOND = 6.0


class Tally(msgspec.Struct):
    """Some sums over the last span, about: what fell into this span, and of the one before the share that still counts."""

    number: int = 0
    now: list[float] = []
    before: list[float] = []

    def add(self, now_ns: int, span_ns: int, *values: float) -> list[float]:
        """The sums with these values in them."""
        number, passed_ns = divmod(now_ns, span_ns)
        now, last = self.now, self.number
        # A little late counts as now.
        if (number != last and number != last - 1) or len(now) != len(values):
            nothing = [0.0] * len(values)
            self.before = now if number == last + 1 and len(now) == len(values) else nothing
            self.now = now = nothing.copy()
            self.number = number
        left = 1 - passed_ns / span_ns
        sums = []
        for at, before in enumerate(self.before):
            now[at] += values[at]
            sums.append(now[at] + before * left)
        return sums


class Usual(msgspec.Struct):
    """What is to be expected of a value now. `is_cold`: the same hour of another day was not seen yet."""

    value: float
    line: float  # beyond it is hardly chance
    grave: float  # beyond it is no chance
    observations: int
    is_cold: bool


class Baseline(msgspec.Struct):
    """What the values of one series usually are: median and MAD of the last 32, and a running median for each hour of the week.

    A value that is far off moves the median of an hour no more than one that is a little off, so an attack does not become the usual.
    """

    recent: bytearray = msgspec.field(default_factory=bytearray)  # floats, the oldest overwritten
    observations: int = 0
    hours: bytearray = msgspec.field(default_factory=bytearray)  # floats: natural logarithms; made once a day was seen
    first_ns: int = 0
    middle: float = 0.0
    mad: float = 0.0
    scatter: float = 0.0  # how far values lie above what was expected: the mean of ln(value / expected), those below counted as 0
    compared: int = 0

    def __post_init__(self) -> None:
        if len(self.recent) % 4 or len(self.recent) > 4 * _RECENT or len(self.hours) not in (0, 4 * _HOURS):
            raise ValueError("not as it is written")

    def add(self, value: float, at_ns: int, unit: float = 0.0) -> None:
        if not self.first_ns:
            self.first_ns = at_ns
        if self.observations >= _LEAST_COMPARED and value > 0 and (expected := self._expected(at_ns)) > 0:
            # Far off counts as a little more than usual: what an attack adds is forgotten in the mass.
            off = max(0.0, math.log(value / expected) - (unit / expected) ** 0.5)
            off = min(off, 3 * self.scatter if self.compared > _LEAST_COMPARED else 3.0)
            self.compared += 1
            self.scatter += (off - self.scatter) / min(self.compared, 300)
        if len(self.recent) < 4 * _RECENT:
            self.recent += struct.pack("f", value)
        else:
            struct.pack_into("f", self.recent, self.observations % _RECENT * 4, value)
        self.observations += 1
        values = struct.unpack(f"{len(self.recent) // 4}f", self.recent)
        self.middle = median(values)
        self.mad = median(abs(each - self.middle) for each in values)
        if value > 0 and math.isfinite(value):
            self._learn_hour(math.log(value), at_ns)

    def _learn_hour(self, value: float, at_ns: int) -> None:
        if not self.hours:
            self.hours = bytearray(struct.pack("f", math.nan) * _HOURS)
        at = hour_of_week(at_ns) * 4
        (known,) = struct.unpack_from("f", self.hours, at)
        struct.pack_into("f", self.hours, at, value if math.isnan(known) else known + 0.3 * max(-0.5, min(0.5, value - known)))

    def _hourly(self, now_ns: int) -> float | None:
        """Of this hour of the week; where it was not seen yet, the most of the same hour of other days."""
        if not self.hours or now_ns - self.first_ns < 24 * HOUR_NS:
            return None
        hour = hour_of_week(now_ns)
        own = struct.unpack_from("f", self.hours, hour * 4)[0]
        # Before a week has passed, what this hour holds is of today, and the day before is what it is compared with.
        if now_ns - self.first_ns >= _HOURS * HOUR_NS and not math.isnan(own):
            return math.exp(own)
        others = [struct.unpack_from("f", self.hours, (hour - 24 * days) % _HOURS * 4)[0] for days in range(1, 7)]
        known = [each for each in others if not math.isnan(each)]
        return math.exp(max(known)) if known else None

    def usual(self, now_ns: int, *, least: int, unit: float = 0.0) -> Usual | None:
        """None before `least` values. `unit`: what one of the things that a value is the sum of comes to; a sum of few varies by chance."""
        if self.observations < least:
            return None
        value = self._expected(now_ns)
        chance = (unit / max(value, unit)) ** 0.5 if unit else 0.0
        spread = max(_SIGMA * self.mad, 0.1 * value, chance * max(value, unit))
        sigma = _SIGMA_OF_MEAN * self.scatter + chance
        line = max(value + _BEYOND * spread, value * min(math.exp(4 * sigma), 20.0))
        grave = max(line, value * min(math.exp(5.5 * sigma), 40.0))
        return Usual(value, line, grave, self.observations, self._hourly(now_ns) is None)

    def _expected(self, now_ns: int) -> float:
        hourly = self._hourly(now_ns)
        return self.middle if hourly is None else max(self.middle, hourly)


def hour_of_week(at_ns: int) -> int:
    return (at_ns // HOUR_NS + _FIRST_HOUR) % _HOURS
