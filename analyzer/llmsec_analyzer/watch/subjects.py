"""What is known of a tenant, a key, a client, an upstream, a model and a session: the state that deviations are told from.

All are msgspec structs of plain values, so that they are saved and read back as they are (saved.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, Literal, TypeVar

import msgspec

from llmsec_analyzer.watch.windows import Baseline, Tally

MAX_SUBJECTS: Final = 100_000
_MOST_KNOWN: Final = 24
_MAX_NAME_CHARS: Final = 256


class Subject(msgspec.Struct, tag=True):
    """`told`: when each kind of deviation was last told of it, by kind and severity."""

    told: dict[str, int] = {}


class Tenant(Subject):
    rates: Tally = msgspec.field(default_factory=Tally)  # requests, tokens
    bucket: float | None = None  # requests that it may still make at once
    filled_ns: int = 0
    errors: Tally = msgspec.field(default_factory=Tally)  # requests, those that failed
    answers: Tally = msgspec.field(default_factory=Tally)  # requests, answers that refuse, requests taken for attacks
    usual_refusals: Baseline = msgspec.field(default_factory=Baseline)
    usual_injections: Baseline = msgspec.field(default_factory=Baseline)
    shares: list[float] = []  # of refusals and injections, as they were last; and the span that they are of
    shares_of: int = 0
    cost: float = 0.0  # of the span `cost_of`
    cost_of: int = 0
    priced: int = 0  # exchanges with a price, all told, and their cost
    cost_ever: float = 0.0
    usual_cost: Baseline = msgspec.field(default_factory=Baseline)


class Key(Subject):
    """An API key, by its fingerprint. What it was seen with, as hashes."""

    exchanges: int = 0
    models: list[int] = []
    tools: list[int] = []
    networks: list[int] = []


class Client(Subject):
    """An end user, or who asks where none is named."""

    asked: Tally = msgspec.field(default_factory=Tally)  # requests, those with what an extraction asks for, those with a new prompt
    lately: list[int] = []  # hashes of its last prompts
    scrapes: Tally = msgspec.field(default_factory=Tally)


class Upstream(Subject):
    answers: Tally = msgspec.field(default_factory=Tally)  # all, failures, those that turned a request away
    failed: int = 0  # in a row
    state: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    reason: str = ""
    since_ns: int = 0
    rates: Tally = msgspec.field(default_factory=Tally)  # requests, tokens


class Model(Subject):
    """A model at an upstream."""

    first_tokens: list[float] = []  # ms, those since the last look
    durations: list[float] = []
    usual_first_token: Baseline = msgspec.field(default_factory=Baseline)
    usual_duration: Baseline = msgspec.field(default_factory=Baseline)


class Session(Subject):
    call: int = 0  # hash of the last call of a tool with its arguments
    times: int = 0
    last_ns: int = 0


class Everyone(Subject):
    bucket: float | None = None
    filled_ns: int = 0


class Canary(Subject):
    """`exchange`: a hash of where it was seen first."""

    exchange: int = 0


AnySubject = Tenant | Key | Client | Upstream | Model | Session | Everyone | Canary
S = TypeVar("S", bound=Subject)


class Subjects:
    """Of all kinds, in the order in which they were last seen; beyond `most` the ones longest unseen are forgotten."""

    def __init__(self, most: int = MAX_SUBJECTS) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, str], Subject] = OrderedDict()
        self.forgotten_total = 0

    def __len__(self) -> int:
        return len(self._known)

    def of(self, kind: Callable[[], S], name: str) -> S:
        """That one, or a new one."""
        key = (kind.__name__, _bounded(name))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = kind()
            if len(self._known) > self._most:
                self._known.popitem(last=False)
                self.forgotten_total += 1
        else:
            self._known.move_to_end(key)
        return found  # type: ignore[return-value] # the key holds the kind

    def items(self) -> list[tuple[str, AnySubject]]:
        return [(name, subject) for (_, name), subject in self._known.items()]  # type: ignore[misc]

    def put(self, name: str, subject: AnySubject) -> None:
        self._known[type(subject).__name__, name] = subject
        if len(self._known) > self._most:
            self._known.popitem(last=False)


def _bounded(name: str) -> str:
    """A long name by its beginning and a hash: strangers choose names, and not how much is kept of them."""
    if len(name) <= _MAX_NAME_CHARS:
        return name
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return f"{name[: _MAX_NAME_CHARS - len(digest) - 1]}…{digest}"


def is_new(known: list[int], value: int) -> bool:
    """Whether it is; it is known then, as one of the last few."""
    if value in known:
        return False
    known.append(value)
    if len(known) > _MOST_KNOWN:
        del known[0]
    return True
