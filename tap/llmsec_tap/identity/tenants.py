"""Which tenant an exchange is of, by rules: all that a rule names must hold, the first rule that holds counts.

Rules are judged here, inside decode, because the plain key is nowhere else: a rule may name its first characters, and only its fingerprint
leaves. A key that no rule knows is a tenant of its own under a name made of its fingerprint, the same in every run of this installation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import msgspec

from llmsec_tap.anomalies import AnomalyName
from llmsec_tap.model import Process

PSEUDONYM: Final = "key-"
_PSEUDONYM_DIGITS: Final = 12


class TenantRule(msgspec.Struct, frozen=True, kw_only=True):
    """`tenant` is whose what matches is. Names, paths and values may have * and ?; what is None or empty is not asked.

    `headers`: names in lower case, and what their values are. `process`: comm, exe or its last part. `header_tenant`: what the tenant header says.
    """

    tenant: str
    api_key_fingerprint: str | None = None
    api_key_prefix: str | None = None
    access_key_id: str | None = None
    deployment: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    process: str | None = None
    pod: str | None = None
    namespace: str | None = None
    path: str | None = None
    model: str | None = None
    header_tenant: str | None = None


class Known(NamedTuple):
    """What a directory says of a key at this moment: whose it is, and what is to be said of the answer on the record."""

    tenant: str | None
    mark: AnomalyName | None = None


class Directory(Protocol):
    """Whose keys are, where that is kept outside the configuration. Nothing here may wait for a network: what is not known is asked for meanwhile."""

    def expect(self, fingerprint: str) -> None:
        """An exchange with this key has begun."""

    def whose(self, fingerprint: str) -> Known: ...


class Evidence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an exchange shows of whose it is. `credential` in plain: it never leaves this module's functions."""

    credential: str | None
    fingerprint: str | None
    headers: Mapping[str, str]
    deployment: str | None
    process: Process | None
    path: str | None
    model: str | None
    header_tenant: str | None


def tenant_of(rules: tuple[TenantRule, ...], seen: Evidence) -> str | None:
    """The tenant of the first rule that holds."""
    return next((rule.tenant for rule in rules if _holds(rule, seen)), None)


def pseudonym(fingerprint: str) -> str:
    """The stable name of a key that no rule knows."""
    return PSEUDONYM + fingerprint[:_PSEUDONYM_DIGITS]


def _holds(rule: TenantRule, seen: Evidence) -> bool:
    if rule.api_key_fingerprint is not None and rule.api_key_fingerprint != seen.fingerprint:
        return False
    if rule.api_key_prefix is not None and not (seen.credential or "").startswith(rule.api_key_prefix):
        return False
    if rule.access_key_id is not None and rule.access_key_id != seen.credential:
        return False
    process = seen.process
    for pattern, value in (
        (rule.deployment, seen.deployment),
        (rule.pod, process.pod if process is not None else None),
        (rule.namespace, process.namespace if process is not None else None),
        (rule.path, seen.path.partition("?")[0] if seen.path is not None else None),
        (rule.model, seen.model),
        (rule.header_tenant, seen.header_tenant),
        *((pattern, seen.headers.get(name)) for name, pattern in rule.headers),
    ):
        if pattern is not None and (value is None or not _is_like(value.strip(), pattern)):
            return False
    return rule.process is None or (process is not None and _is_process(process, rule.process))


def _is_process(process: Process, pattern: str) -> bool:
    exe = process.exe or ""
    return any(name and _is_like(name, pattern) for name in (process.comm, exe, exe.rpartition("/")[2]))


def _is_like(value: str, pattern: str) -> bool:
    return value == pattern or _compiled(pattern).match(value) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")))  # square brackets stand for themselves: names of models have some
