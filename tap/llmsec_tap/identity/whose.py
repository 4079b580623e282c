"""Whose an exchange is, as client and server say it in headers and body: ids, trace, end user, session, tags, SDK, limits, who was forwarded.

Everything here is a claim of the wire. Names of end users are personal: only their keyed fingerprint comes on the record, unless the
configuration asks for them in clear.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from llmsec_tap.dialects.base import RequestView, dict_of, list_of
from llmsec_tap.identity.credentials import Fingerprinter
from llmsec_tap.identity.secret_shapes import is_secret_name, is_token, mask_vendor_forms
from llmsec_tap.identity.tenants import Directory, Evidence, Known, TenantRule, pseudonym, tenant_of
from llmsec_tap.model import Counts, Process, RateLimit, Resets

JSON = Any


class WhoseSettings(msgspec.Struct, kw_only=True, frozen=True):
    """What configuration says of names: rules for tenants, the header of the tenant, the tenant of all else, end users in clear or as fingerprints."""

    tenant_header: str | None = None
    tenant: str | None = None
    end_users_in_clear: bool = False
    rules: tuple[TenantRule, ...] = ()


class Whose(msgspec.Struct, kw_only=True):
    """Under the names of the record."""

    request_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    end_user: str | None = None
    session_id: str | None = None
    tags: dict[str, str] = {}
    tenant: str | None = None
    deployment: str | None = None
    api_version: str | None = None
    rate_limit: RateLimit | None = None
    client_agent: str | None = None
    forwarded_client: str | None = None


_MAX_ID_CHARS = 256
_MAX_TAGS = 16
_MAX_TAG_NAME_CHARS = 64
_MAX_TAG_CHARS = 512


class _Names:
    """Names of headers, in the order in which they count."""

    def __init__(self, *names: str) -> None:
        self.all = frozenset(names)
        self._names = names

    def there(self, headers: Mapping[str, str]) -> list[str]:
        """What headers of these names say. Nearly always there are none, which is quickly said."""
        if self.all.isdisjoint(headers):
            return []
        return [value for name in self._names if (value := headers.get(name, "").strip())]


# Headers by which servers name one request, then those by which clients do.
_REQUEST_IDS: Final = _Names(
    "x-request-id", "request-id", "x-amzn-requestid", "x-amz-request-id", "apim-request-id", "x-ms-request-id", "x-ms-client-request-id",
    "x-fireworks-request-id", "x-ds-trace-id", "x-log-id", "x-tt-logid", "x-mistral-request-id", "mistral-correlation-id", "x-litellm-call-id",
    "x-portkey-trace-id", "x-debug-trace-id", "nvcf-reqid", "x-inference-id", "x-oneapi-request-id", "cf-aig-log-id", "x-global-transaction-id",
)  # fmt: skip
_CLIENTS_IDS: Final = _Names(
    "x-request-id", "x-client-request-id", "request-id", "x-correlation-id", "x-ms-client-request-id", "idempotency-key"
)
_SESSION_HEADERS: Final = _Names(
    "x-session-id", "session-id", "session_id", "x-claude-code-session-id", "helicone-session-id", "mcp-session-id", "x-conversation-id",
    "conversation_id", "x-amzn-bedrock-agentcore-runtime-session-id", "x-litellm-session-id", "x-grok-conv-id",
)  # fmt: skip
_SESSION_FIELDS: Final = ("session_id", "sessionId", "conversation_id", "conversationId", "thread_id", "chat_id")
_USER_FIELDS: Final = ("user", "safety_identifier", "user_id", "end_user", "end_user_id")
_USER_HEADERS: Final = _Names("x-litellm-end-user-id", "helicone-user-id", "x-end-user-id", "x-user-id", "x-openwebui-user-id")
_TAG_FIELDS: Final = frozenset(("metadata", "requestMetadata", "labels"))


def whose_request(view: RequestView, fingerprint: Fingerprinter, settings: WhoseSettings) -> Whose:
    """What the request says. `view.body` must be whole still."""
    headers, body = view.headers, dict_of(view.body)
    metadata = dict_of(body.get("metadata"))
    user, session = _user_and_session(headers, body, metadata)
    trace_id, span_id = _trace(headers)
    tenant = headers.get(settings.tenant_header.lower(), "").strip() if settings.tenant_header else ""
    return Whose(
        request_id=_first(headers, _CLIENTS_IDS, fingerprint),
        trace_id=trace_id,
        span_id=span_id,
        end_user=(user[:_MAX_ID_CHARS] if settings.end_users_in_clear else fingerprint(user)) if user else None,
        session_id=mask_vendor_forms(session[:_MAX_ID_CHARS], fingerprint) if session else None,
        tags=_tags(body, fingerprint),
        tenant=mask_vendor_forms(tenant[:_MAX_ID_CHARS], fingerprint) if tenant else None,
        deployment=_deployment(view, fingerprint),
        api_version=_plain(view.query.get("api-version")) if "api-version" in view.query_string else None,
        client_agent=_client_agent(headers),
        forwarded_client=_forwarded(headers),
    )


def resolved_tenant(
    whose: Whose,
    view: RequestView | None,
    credential: str | None,
    process: Process | None,
    model: str | None,
    fingerprint: Fingerprinter,
    settings: WhoseSettings,
    directory: Directory | None = None,
) -> Known:
    """The tenant: by the first rule that holds, else the directory's, else as the header says, else the default, else a name for the key.

    That name is given where there are rules or a directory.
    """
    if not settings.rules and directory is None:
        return Known(whose.tenant or settings.tenant)
    seen = Evidence(
        credential=credential,
        fingerprint=fingerprint(credential) if credential else None,
        headers=view.headers if view is not None else {},
        deployment=whose.deployment,
        process=process,
        path=view.path if view is not None else None,
        model=model,
        header_tenant=whose.tenant,
    )
    found = tenant_of(settings.rules, seen)
    if found is not None:
        return Known(found)
    kept = directory.whose(seen.fingerprint) if directory is not None and seen.fingerprint is not None else Known(None)
    found = kept.tenant or whose.tenant or settings.tenant
    return Known(found or (pseudonym(seen.fingerprint) if seen.fingerprint is not None else None), kept.mark)


def with_response(whose: Whose, headers: Mapping[str, str], ts_ns: int, fingerprint: Fingerprinter) -> Whose:
    """The same with what the head of the answer says; its request id counts more than the client's."""
    whose.request_id = _first(headers, _REQUEST_IDS, fingerprint) or whose.request_id
    if whose.trace_id is None:
        whose.trace_id, whose.span_id = _trace(headers)
    whose.deployment = whose.deployment or _plain(headers.get("x-ms-deployment-name"))
    whose.rate_limit = _rate_limit(headers, ts_ns)
    return whose


def _first(headers: Mapping[str, str], names: _Names, fingerprint: Fingerprinter) -> str | None:
    return next((mask_vendor_forms(value[:_MAX_ID_CHARS], fingerprint) for value in names.there(headers)), None)


def _plain(value: str | None) -> str | None:
    return value if value and _WORD.fullmatch(value) else None


_WORD: Final = re.compile(r"[\w.:/@+-]{1,128}", re.ASCII)


def _deployment(view: RequestView, fingerprint: Fingerprinter) -> str | None:
    """`…/openai/deployments/{deployment}/…` of Azure."""
    segments = view.segments if "/deployments/" in view.path else []
    if "deployments" in segments[:-1]:
        return mask_vendor_forms(segments[segments.index("deployments") + 1][:_MAX_ID_CHARS], fingerprint)
    return None


# --- end user and session ----------------------------------------------------------------------------------------------

_NAMING_FIELDS: Final = frozenset(("metadata", "conversation", *_USER_FIELDS, *_SESSION_FIELDS))
_NAMING_HEADERS: Final = _USER_HEADERS.all | _SESSION_HEADERS.all
# Claude Code names user, account and session in one text.
_USER_AND_SESSION: Final = re.compile(r"(.+?)_session_([\w-]{8,64})")


def _user_and_session(headers: Mapping[str, str], body: dict[str, JSON], metadata: dict[str, JSON]) -> tuple[str | None, str | None]:
    if _NAMING_FIELDS.isdisjoint(body) and _NAMING_HEADERS.isdisjoint(headers):
        return None, None
    named = [body.get("user"), metadata.get("user_id"), *(body.get(name) for name in _USER_FIELDS[1:])]
    named += [metadata.get(name) for name in ("user", "userId", "end_user", "trace_user_id")]
    named += _USER_HEADERS.there(headers)
    user = next((value for value in named if isinstance(value, str) and value), None)
    conversation = body.get("conversation")
    sessions: list[JSON] = [*_SESSION_HEADERS.there(headers)]
    sessions += [holder.get(name) for holder in (body, metadata) for name in _SESSION_FIELDS]
    sessions += [conversation, dict_of(conversation).get("id")]
    session = next((value for value in sessions if isinstance(value, str) and value), None)
    if user is not None:
        user, found = _parted(user)
        session = session or found
    return user, session


def _parted(user: str) -> tuple[str, str | None]:
    found = _USER_AND_SESSION.fullmatch(user)
    if found is not None:
        return found[1], found[2]
    if user.startswith("{"):
        try:
            value = dict_of(msgspec.json.decode(user))
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            return user, None
        session = value.pop("session_id", None)
        if isinstance(session, str):
            return msgspec.json.encode(value, order="deterministic").decode(), session
    return user, None


def _tags(body: dict[str, JSON], fingerprint: Fingerprinter) -> dict[str, str]:
    tags: dict[str, str] = {}
    if _TAG_FIELDS.isdisjoint(body):
        return tags
    for field in ("metadata", "requestMetadata", "labels"):
        for name, value in dict_of(body.get(field)).items():
            values = [item for item in list_of(value) if isinstance(item, str)] if name == "tags" else [value]
            text = ", ".join(values) if values and all(isinstance(item, str) for item in values) else None
            if text is None or len(tags) >= _MAX_TAGS or len(name) > _MAX_TAG_NAME_CHARS or name in _NO_TAGS:
                continue
            text = text[:_MAX_TAG_CHARS]
            tags[mask_vendor_forms(name, fingerprint)] = fingerprint(text) if is_secret_name(name) else mask_vendor_forms(text, fingerprint)
    return tags


_NO_TAGS: Final = frozenset(("user_id", "user", "userId", "end_user", "trace_user_id", *_SESSION_FIELDS))


# --- trace ----------------------------------------------------------------------------------------------------------------

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")  # W3C Trace Context
_B3: Final = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-[01d](?:-[0-9a-f]{16})?)?")
_CLOUD: Final = re.compile(r"([0-9a-f]{32})(?:/(\d{1,20}))?")  # X-Cloud-Trace-Context
_AMAZON: Final = re.compile(r"Root=1-([0-9a-f]{8})-([0-9a-f]{24})")
_HEX: Final = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{16})?")


_TRACES: Final = frozenset(("traceparent", "b3", "x-b3-traceid", "x-cloud-trace-context", "x-amzn-trace-id"))


def _trace(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    if _TRACES.isdisjoint(headers):
        return None, None
    found = _TRACEPARENT.match(headers.get("traceparent", "").strip().lower())
    if found is not None and found[1].strip("0") and found[2].strip("0"):
        return found[1], found[2]
    found = _B3.fullmatch(headers.get("b3", "").strip().lower())
    if found is not None:
        return found[1], found[2]
    trace, span = (headers.get(f"x-b3-{name}id", "").strip().lower() for name in ("trace", "span"))
    if _HEX.fullmatch(trace):
        return trace, span if _HEX.fullmatch(span) else None
    found = _CLOUD.match(headers.get("x-cloud-trace-context", "").strip().lower())
    if found is not None:
        return found[1], f"{int(found[2]) & 0xFFFFFFFFFFFFFFFF:016x}" if found[2] else None
    found = _AMAZON.search(headers.get("x-amzn-trace-id", ""))
    if found is not None:
        return found[1] + found[2], None
    return None, None


# --- who calls ------------------------------------------------------------------------------------------------------------

_SDK: Final = re.compile(
    r"(?:Async)?(OpenAI|AzureOpenAI|Anthropic|Groq|Together|Cerebras|\w{2,24}?)/(Python|JS|Go|Java|Ruby|C#|\.NET|PHP) v?([\w.+-]{1,32})"
)
_AGENT: Final = re.compile(r"([A-Za-z][\w.@-]{0,47}(?:/[a-z][\w-]{0,23})?)(?:/v?(\d[\w.+-]{0,31}))?")


def _client_agent(headers: Mapping[str, str]) -> str | None:
    """`family/version` of the SDK or program that asks."""
    agent = headers.get("user-agent", "").strip()
    family = _family(agent[:256])
    if family is not None:
        return family
    language, version = headers.get("x-stainless-lang"), headers.get("x-stainless-package-version")
    return f"stainless-{language}/{version}" if language and version and _WORD.fullmatch(f"{language}/{version}") else None


@lru_cache(maxsize=256)
def _family(agent: str) -> str | None:
    found = _SDK.match(agent)
    if found is not None:
        return f"{found[1].lower()}-{found[2].lower()}/{found[3]}"
    found = _AGENT.match(agent)
    family = (f"{found[1]}/{found[2]}" if found[2] else found[1]) if found is not None else None
    return None if family is None or is_token(family) else family  # a key is no name


_FORWARDING: Final = frozenset(("x-forwarded-for", "forwarded", "x-real-ip", "cf-connecting-ip", "true-client-ip"))
_FORWARDED: Final = re.compile(r'(?i)(?:^|[;,\s])for="?(\[[0-9a-f:.]+\](?::\d+)?|[0-9.]+(?::\d+)?)"?')


def _forwarded(headers: Mapping[str, str]) -> str | None:
    """The client that a proxy names: the first of X-Forwarded-For, of Forwarded (RFC 7239), or of what a CDN adds."""
    if _FORWARDING.isdisjoint(headers):
        return None
    first = headers.get("x-forwarded-for", "").partition(",")[0].strip()
    found = _FORWARDED.search(headers.get("forwarded", ""))
    for given in (
        first,
        found[1] if found is not None else "",
        *(headers.get(n, "").strip() for n in ("x-real-ip", "cf-connecting-ip", "true-client-ip")),
    ):
        address = address_of(given)
        if address is not None:
            return address
    return None


def address_of(given: str) -> str | None:
    """An IP address, with its port where one is given and IPv6 in brackets then; None for anything else."""
    host, port = given, ""
    if given.startswith("["):
        host, _, rest = given[1:].partition("]")
        port = rest.removeprefix(":")
    elif given.count(":") == 1:
        host, _, port = given.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not (port.isascii() and port.isdigit() and int(port[:6]) < 65536):
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


# --- limits ---------------------------------------------------------------------------------------------------------------

# What is limited: names of the record -> headers of limit, remaining and reset, of OpenAI and Azure, Anthropic, and the plain ones.
_LIMITS: Final = {
    "requests": (
        ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
        ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
        ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
        ("x-ratelimit-limit-req-minute", "x-ratelimit-remaining-req-minute", ""),
    ),
    "tokens": (
        ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        ("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
        ("anthropic-ratelimit-input-tokens-limit", "anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
        ("x-ratelimit-limit-tokens-minute", "x-ratelimit-remaining-tokens-minute", ""),
    ),
}
_RETRY: Final = ("retry-after-ms", "x-ms-retry-after-ms")
_LIMIT_HEADERS: Final = frozenset(
    ("ratelimit", "retry-after", *_RETRY, *(name for rows in _LIMITS.values() for row in rows for name in row if name))
)
_DRAFT: Final = re.compile(r"(limit|remaining|reset|r|q|t)\s*=\s*(\d{1,15})")  # draft-ietf-httpapi-ratelimit-headers
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|s|m|h|d)")
_UNIT_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_EPOCH_S = 1_000_000_000  # a number beyond is a time, not a span


def _rate_limit(headers: Mapping[str, str], ts_ns: int) -> RateLimit | None:
    if _LIMIT_HEADERS.isdisjoint(headers):
        return None
    limits, remaining, resets = Counts(), Counts(), Resets()
    is_said = False
    for what, rows in _LIMITS.items():
        for limit, left, reset in rows:
            found = (_number(headers.get(limit)), _number(headers.get(left)), _seconds(headers.get(reset), ts_ns))
            if found != (None, None, None):
                for counts, value in zip((limits, remaining, resets), found, strict=True):
                    setattr(counts, what, value)
                is_said = True
                break
    draft = {name: int(value) for name, value in _DRAFT.findall(headers.get("ratelimit", ""))}
    if draft and not is_said:
        limits.requests = draft.get("limit", draft.get("q"))
        remaining.requests = draft.get("remaining", draft.get("r"))
        resets.requests = draft.get("reset", draft.get("t"))
        is_said = True
    retry = _seconds(headers.get("retry-after"), ts_ns)
    for name in _RETRY:
        milliseconds = _number(headers.get(name))
        if milliseconds is not None:
            retry = milliseconds / 1000
    if not is_said and retry is None:
        return None
    return RateLimit(limits=limits, remaining=remaining, reset_s=resets, retry_after_s=retry)


def _number(value: str | None) -> int | None:
    value = (value or "").partition(",")[0].partition(";")[0].strip()
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


def _seconds(value: str | None, ts_ns: int) -> float | None:
    """Seconds from now: `6m0s`, `1.5`, a time (RFC 3339, RFC 9110), or seconds since 1970."""
    value = (value or "").strip()
    if not value or len(value) > 64:
        return None
    try:
        number = float(value)
    except ValueError:
        pass
    else:
        now = ts_ns / 1e9
        if number >= _EPOCH_S * 1000:
            number /= 1000
        seconds = number - now if number >= _EPOCH_S else number
        return round(max(0.0, seconds), 3) if seconds < _EPOCH_S else None  # also NaN is none
    pieces = _SPAN.findall(value)
    if pieces and "".join(number + unit for number, unit in pieces) == value:
        return round(sum(float(number) * _UNIT_S[unit] for number, unit in pieces), 3)
    moment = _moment(value)
    return round(max(0.0, moment.timestamp() - ts_ns / 1e9), 3) if moment is not None else None


def _moment(value: str) -> dt.datetime | None:
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        try:
            moment = dt.datetime.strptime(value, "%a, %d %b %Y %H:%M:%S GMT")  # noqa: DTZ007 - the format is in UTC
        except ValueError:
            return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
