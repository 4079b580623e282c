"""What a record of an application may say, and what the agent says of it instead.

Whoever may write to the socket may write anything: a record is taken only where every value has its type and is within what a tap's own
could be. Whose it is, and which record it is, the agent says.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from llmsec_analyzer.risk import OWN_RULES
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.model import AnomalyCount, Exchange, Finding, Process
from llmsec_tap.storage.rows import INT64_MAX, INT64_MIN

# An application's queue may have waited for an agent so long. Beyond it a day's folder may be pruned already.
_OLDEST_NS: Final = 86_400 * 10**9
_SKEW_NS: Final = 60 * 10**9
# What becomes labels of metrics, columns to group by, or names in a list.
_WORD: Final = re.compile(r"[\w.:/@+-]{1,128}", re.ASCII)
_WORDS: Final = ("provider", "api", "operation", "method", "http_version")
_TEXTS: Final = frozenset(("input_text", "output_text", "reasoning_text", "refusal_text"))
_MAX_NAME_CHARS: Final = 512
_MAX_PATH_CHARS: Final = 8_192
_MAX_TAGS: Final = 256
_MAX_ANOMALIES: Final = 64
_MAX_FINDINGS: Final = 1_000
_MAX_COUNT: Final = 10**10
_MAX_MS: Final = 86_400_000
_LEAST_RATE: Final = 1e-4
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}")
# Messages, parts, numbers, texts and lists: a bound on objects, of which a few bytes on their way make many.
_MAX_VALUES: Final = 200_000
# Detection's own marks are made again, but for this one: a policy of the application's may not have looked at everything either.
_OF_POLICIES: Final = "detection_incomplete"


class RefusedError(Exception):
    """A record is not taken; `reason` is one of a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end, as the kernel says it (SO_PEERCRED in unix(7)), and what /proc says of it. `pid` is 0 where it is not in our sight."""

    uid: int
    pid: int
    started: str = ""  # field 22 of /proc/PID/stat: a pid is given to others, later
    comm: str | None = None
    container: str | None = None


_decode: Final = msgspec.msgpack.Decoder(Exchange).decode


def admitted(record: bytes | msgspec.Raw, now_ns: int) -> Exchange:
    """The record, where it is one. Raises RefusedError."""
    try:
        exchange = _decode(record)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        raise RefusedError("malformed") from None
    except MemoryError:
        raise RefusedError("too_large") from None
    if exchange.provider is None:
        raise RefusedError("not_a_model")
    if exchange.started_ns is None or not now_ns - _OLDEST_NS <= exchange.started_ns <= now_ns + _SKEW_NS:
        raise RefusedError("time")
    times = (exchange.first_byte_ns, exchange.first_token_ns, exchange.ended_ns)
    if not all(time is None or exchange.started_ns <= time <= now_ns + _SKEW_NS for time in times):
        raise RefusedError("time")
    if not _has_sound_numbers(exchange):
        raise RefusedError("malformed")
    _bound(exchange)
    if not (_has_sound_names(exchange) and _has_sound_scores(exchange)):
        raise RefusedError("malformed")
    return exchange


def _bound(exchange: Exchange) -> None:
    """What an application's own clients and servers choose is cut to what is kept of it: nobody gets a record refused by a long name."""
    is_cut = False
    for name in exchange.__struct_fields__:
        value = getattr(exchange, name)
        most = _MAX_PATH_CHARS if name == "path" else _MAX_NAME_CHARS
        if isinstance(value, str) and name not in _TEXTS and len(value) > most:
            setattr(exchange, name, value[:most])
            is_cut = True
    tags = {name[:_MAX_NAME_CHARS]: value[:_MAX_PATH_CHARS] for name, value in list(exchange.tags.items())[:_MAX_TAGS]}
    parameters = {name: value for name, value in exchange.request.parameters.items() if len(name) <= _MAX_NAME_CHARS}
    is_cut = is_cut or tags != exchange.tags or parameters != exchange.request.parameters
    exchange.tags, exchange.request.parameters = tags, parameters
    for usage in (exchange.usage, exchange.usage_estimated):
        for name in usage.__struct_fields__ if usage is not None else ():
            if isinstance(count := getattr(usage, name), int) and not 0 <= count <= _MAX_COUNT:
                setattr(usage, name, None)
    if is_cut:
        exchange.anomalies = [*exchange.anomalies, AnomalyCount(name="names_cut", count=1)]


def _has_sound_names(exchange: Exchange) -> bool:
    """Names are kept, as labels and as what is known of a subject; only texts may be long."""
    words = [getattr(exchange, name) for name in _WORDS] + [mark.name for mark in exchange.anomalies]
    if not all(word is None or _WORD.fullmatch(word) for word in words):
        return False
    if exchange.api_key_fingerprint is not None and not _FINGERPRINT.fullmatch(exchange.api_key_fingerprint):
        return False
    names: list[str | None] = [*exchange.finish_reasons]
    names += [name for call in exchange.tool_calls for name in (call.id, call.name)]
    names += [tool.name for tool in exchange.request.tools]
    names += [message.role for message in (*exchange.request.messages, *exchange.response.messages)]
    names += [name for finding in exchange.findings for name in (finding.finding_id, finding.rule_id, finding.type, finding.fingerprint)]
    return (
        all(len(name) <= _MAX_NAME_CHARS for name in names if name is not None)
        and len(exchange.anomalies) <= _MAX_ANOMALIES
        and len(exchange.findings) <= _MAX_FINDINGS
    )


def _has_sound_scores(exchange: Exchange) -> bool:
    """The types do not say it: scores are 0 to 100, confidence is 0 to 1, nothing is negative, and nothing is without end."""
    scores = (exchange.risk_score, exchange.security_score)
    counts = [exchange.status or 0, exchange.request.body_bytes, exchange.response.body_bytes, exchange.response.events or 0]
    counts += [exchange.response.embeddings or 0, exchange.response.embedding_dimensions or 0, *(mark.count for mark in exchange.anomalies)]
    times = [exchange.ttft_ms, exchange.itl_ms_p50, exchange.itl_ms_p95]
    rate = exchange.output_tokens_per_s
    return (
        all(score is None or 0 <= score <= 100 for score in scores)
        and all(0 <= count <= _MAX_COUNT for count in counts)
        and all(time is None or 0 <= time <= _MAX_MS for time in times)
        and (rate is None or _LEAST_RATE <= rate <= _MAX_COUNT)
        and all(0 <= finding.confidence <= 1 and 0 <= finding.location.start <= finding.location.end for finding in exchange.findings)
    )


def _has_sound_numbers(exchange: Exchange) -> bool:
    """Whether every number can be stored, and be counted with. Raises RefusedError where there are too many values of any kind."""
    waiting: list[Any] = [exchange]
    seen = 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen + len(waiting) > _MAX_VALUES:
            raise RefusedError("too_large")
        if isinstance(value, int):  # also true and false
            if not INT64_MIN <= value <= INT64_MAX:
                return False
        elif isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif isinstance(value, msgspec.Struct):
            waiting += [getattr(value, name) for name in value.__struct_fields__]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
    return True


def made_ours(
    exchange: Exchange, peer: Peer, process: Process | None, *, fingerprint: Fingerprinter, node: str | None, detects: bool
) -> Exchange:
    """The record with what the agent itself says of it. `detects`: it is examined here, so what the application's detection found is made again.

    Its id is of the process that sent it: sent twice it is one record, and no process can write over a record of another.
    """
    milliseconds = (exchange.started_ns or 0) // 1_000_000 & 0xFFFFFFFFFFFF
    sent_as = f"{peer.uid} {peer.pid} {peer.started} {exchange.exchange_id}"
    exchange_id = f"{milliseconds:012x}{fingerprint('sdk ' + sent_as)[:20]}"
    kept = [finding for finding in exchange.findings if not detects or finding.rule_id.startswith(OWN_RULES)]
    exchange.findings = [_renamed(finding, exchange_id, fingerprint) for finding in kept]
    exchange.exchange_id = exchange_id
    exchange.capture_kind = "sdk"
    exchange.node = node
    exchange.process = process
    exchange.tls = None
    exchange.cost_usd, exchange.deviations, exchange.alerts = None, [], []
    if detects:
        exchange.anomalies = [mark for mark in exchange.anomalies if mark.name == _OF_POLICIES or not mark.name.startswith("detection_")]
    return exchange


def _renamed(finding: Finding, exchange_id: str, fingerprint: Fingerprinter) -> Finding:
    finding_id = fingerprint(f"sdk finding {exchange_id} {finding.finding_id}")
    return msgspec.structs.replace(finding, finding_id=finding_id, exchange_id=exchange_id, suppressed=None)
