"""Rates over the last minute, by process and by model: fixed memory, whatever the traffic names."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

# A minute in steps of five seconds: long enough for a rate of slow exchanges, short enough to follow what happens.
STEPS: Final = 12
STEP_NS: Final = 5_000_000_000
_WINDOW_NS: Final = STEPS * STEP_NS
# Of each step and name so many times are kept for the quantiles; beyond them every second, fourth, … one.
_TIMES: Final = 32
# More names than people look at; what comes beyond them counts under one row. A wire can make up names at will.
MAX_NAMES: Final = 1000
OTHERS: Final = "(others)"


@dataclass(slots=True)
class _Step:
    number: int
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    risk: int = 0
    times: list[float] = field(default_factory=list)
    times_seen: int = 0
    every: int = 1

    def add_time(self, ms: float) -> None:
        self.times_seen += 1
        if self.times_seen % self.every:
            return
        self.times.append(ms)
        if len(self.times) > _TIMES:
            self.times = self.times[1::2]
            self.every *= 2


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one name over the window; rates are per second, `error_share` is 0 to 1. `risk` is the highest."""

    name: str
    requests: float
    input_tokens: float
    output_tokens: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    error_share: float | None
    risk: int
    open: int
    count: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What one exchange adds."""

    input_tokens: int = 0
    output_tokens: int = 0
    ttft_ms: float | None = None
    is_error: bool = False
    risk: int = 0


class Windows:
    """Sliding windows by name. `now_ns` of each call goes on, or stays."""

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._steps: OrderedDict[str, deque[_Step]] = OrderedDict()  # the longest idle name first
        self._open: dict[str, int] = {}

    def name_of(self, name: str, now_ns: int) -> str:
        """Under which name it counts: its own, or that of all others where there are too many."""
        if name in self._steps:
            return name
        if len(self._steps) >= MAX_NAMES:
            idle = next((known for known in self._steps if known != OTHERS and not self._open.get(known)), None)
            # The longest idle name is the first: where it still counts, all do.
            if idle is None or not self._is_over(self._steps[idle], now_ns):
                name = OTHERS
            else:
                del self._steps[idle]
        self._steps.setdefault(name, deque())
        return name

    def begin(self, name: str) -> None:
        """A request is out. `name` is one that `name_of` gave."""
        self._open[name] = self._open.get(name, 0) + 1
        self._steps.setdefault(name, deque())
        self._steps.move_to_end(name)

    def end(self, name: str) -> None:
        left = self._open.get(name, 0) - 1
        if left > 0:
            self._open[name] = left
        else:
            self._open.pop(name, None)

    def add(self, name: str, sample: Sample, at_ns: int) -> None:
        steps = self._steps.setdefault(name, deque())
        self._steps.move_to_end(name)
        number = at_ns // STEP_NS
        if steps and number < steps[-1].number:
            number = steps[-1].number if steps[-1].number - number > STEPS else number
        step = next((step for step in reversed(steps) if step.number == number), None)
        if step is None:
            step = _Step(number)
            steps.append(step)
            if len(steps) > 1 and steps[-2].number > number:  # it came late
                self._steps[name] = steps = deque(sorted(steps, key=lambda one: one.number))
            while len(steps) > STEPS + 1:
                steps.popleft()
        step.requests += 1
        step.errors += sample.is_error
        step.input_tokens += sample.input_tokens
        step.output_tokens += sample.output_tokens
        step.risk = max(step.risk, sample.risk)
        if sample.ttft_ms is not None and math.isfinite(sample.ttft_ms):
            step.add_time(sample.ttft_ms)

    def rates(self, now_ns: int) -> Iterator[Rates]:
        """Of each name that counted in the window or has a request out."""
        oldest = now_ns // STEP_NS - STEPS
        span_s = min(_WINDOW_NS, max(STEP_NS, now_ns - self._began_ns)) / 1e9
        for name, steps in self._steps.items():
            while steps and steps[0].number <= oldest:
                steps.popleft()
            is_open = self._open.get(name, 0)
            if not steps and not is_open:
                continue
            count = sum(step.requests for step in steps)
            times = sorted((ms, step.every) for step in steps for ms in step.times)
            yield Rates(
                name=name,
                requests=count / span_s,
                input_tokens=sum(step.input_tokens for step in steps) / span_s,
                output_tokens=sum(step.output_tokens for step in steps) / span_s,
                ttft_p50_ms=_quantile(times, 0.5),
                ttft_p95_ms=_quantile(times, 0.95),
                error_share=sum(step.errors for step in steps) / count if count else None,
                risk=max((step.risk for step in steps), default=0),
                open=is_open,
                count=count,
            )

    def _is_over(self, steps: deque[_Step], now_ns: int) -> bool:
        return not steps or steps[-1].number <= now_ns // STEP_NS - STEPS


def _quantile(times: list[tuple[float, int]], share: float) -> float | None:
    """Of values with weights, sorted."""
    if not times:
        return None
    left = share * sum(weight for _, weight in times)
    for value, weight in times:
        left -= weight
        if left <= 0:
            return value
    return times[-1][0]
