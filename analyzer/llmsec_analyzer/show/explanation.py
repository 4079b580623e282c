"""One stored finding explained to a person: which rule, why, where in the text, what it means and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from llmsec_analyzer.engine.excess import is_masked
from llmsec_analyzer.injection.normalise import normalise
from llmsec_analyzer.judge.exchange_parts import TextPart, text_parts
from llmsec_analyzer.risk import OWN_RULES
from llmsec_analyzer.rules.schema import Rule
from llmsec_analyzer.show.terminal import visible
from llmsec_tap.model import Category, Exchange, Finding

# Characters shown on either side of a match, and of a long match itself.
_AROUND: Final = 160
_MATCH: Final = 1_200
_DECODED: Final = 4_000
_INDENT: Final = "    "

# What to do about a finding.
ADVICE: Final[Mapping[Category, str]] = {
    "secret": "Revoke it at its issuer and issue another: whoever reads this store or the model's logs has it. Then look for it elsewhere with `findings --fingerprint`.",
    "pii": "See whether the model may have this: a contract, a purpose, a place. If not, mask it before it is sent; `--redact` masks what is stored.",
    "prompt_injection": "Read the text, then what the model did next: its answer and tool calls (`exchanges show`). If it came from a tool or document, find who can write there.",
    "jailbreak": "Read the answer: a refusal needs nothing, consent is an incident. Of one client, look for more with `exchanges`.",
    "system_prompt_leak": "Take what was told for known. If it holds anything that must not be known, it does not belong into a prompt.",
    "data_exfiltration": "See where the address leads and what it carries; keep clients from loading what answers name without asking.",
    "unsafe_output": "See whether something ran it: a tool call with it, a shell, a page. What runs answers needs a policy of its own.",
    "anomaly": "See what its anomalies say (docs/anomalies.md); something of it could not be read, or came as nothing else does.",
}
# Places that are no text.
_WHOLES: Final = {"exchange": "the exchange as a whole", "request": "the request as a whole"}


def advice(finding: Finding) -> str:
    if finding.rule_id.startswith(OWN_RULES):
        return "The recorded application's own rule or policy says so (docs/sdk.md): ask whoever wrote it."
    return ADVICE[finding.category]


def explanation(finding: Finding, exchange: Exchange, rules: Mapping[str, Rule], fingerprint: Callable[[str], str]) -> Iterator[str]:
    """Lines. Secrets and personal data are shown as their types; whatever could steer a terminal as escapes."""
    place = finding.location
    part = next((part for part in text_parts(exchange) if str(part.place) == place.part), None)
    yield f"finding {finding.finding_id}: {finding.severity} {finding.category}, {_one(finding.type)}, confidence {finding.confidence:.2f}"
    if finding.suppressed is not None:
        mark = finding.suppressed
        yield f"suppressed until {mark.until} by {_one(mark.owner)}: {_one(mark.reason)}"
    yield _exchange(exchange)
    where = _WHOLES.get(place.part) or f"{_one(place.part)}, characters {place.start} to {place.end}"
    yield f"place: {where}" + (f", role {_one(part.role)}" if part is not None else "")
    if finding.at_output_token is not None:
        yield f"known after {finding.at_output_token} increments of the answer"
    yield f"why: {_one(finding.explanation)}"
    yield from _rule(finding, rules)
    names = finding.taxonomy
    known = (("OWASP LLM 2025", names.owasp_llm_2025), ("OWASP LLM 2026", names.owasp_llm_2026), ("MITRE", names.mitre_atlas))
    yield "taxonomy: " + (", ".join(f"{name} {value}" for name, value in known if value) or "none")
    yield f"fingerprint: {_one(finding.fingerprint) or 'none'}"
    yield from _text(finding, exchange, part, fingerprint)
    yield f"what to do: {advice(finding)}"


def _exchange(exchange: Exchange) -> str:
    facts = (exchange.provider, exchange.request_model, exchange.tenant and f"tenant {exchange.tenant}")
    return f"exchange {exchange.exchange_id}: {exchange.client} -> {exchange.server}" + "".join(f", {_one(fact)}" for fact in facts if fact)


def _rule(finding: Finding, rules: Mapping[str, Rule]) -> Iterator[str]:
    rule = rules.get(finding.rule_id)
    if rule is None:
        whose = "of the recorded application" if finding.rule_id.startswith(OWN_RULES) else "which this configuration does not have"
        yield f"rule: {_one(finding.rule_id)} version {_one(finding.rule_version)}, {whose}"
        return
    version = "" if rule.version == finding.rule_version else f" (here it is version {_one(rule.version)})"
    yield f"rule: {rule.id} version {_one(finding.rule_version)}{version}: {_one(rule.name)}"
    if rule.pattern is not None:
        yield f"{_INDENT}pattern {_one(rule.pattern)}"
    if rule.keywords:
        yield f"{_INDENT}looked for where one of these stands: {_one(', '.join(rule.keywords[:20]))}"
    found = re.search(r"signs: ([\w., ]+)", finding.explanation)
    for sign in (found[1].split(", ") if found else ())[:20]:
        yield f"{_INDENT}sign {_one(sign)}" + (f": {_one(rules[sign].name)}" if sign in rules else "")


def _text(finding: Finding, exchange: Exchange, part: TextPart | None, fingerprint: Callable[[str], str]) -> Iterator[str]:
    if part is None:
        yield f"text: {_WHOLES.get(finding.location.part, 'not stored')}"
        return
    place, text = finding.location, part.text
    others = [other for other in exchange.findings if other.location.part == place.part]
    if fingerprint(text[place.start : place.end]) != finding.fingerprint and any(f"[{other.type}]" in text for other in others):
        yield "text: stored masked, so that places in it have moved; `exchanges show` has all of it"
        return
    first, last = max(0, place.start - _AROUND), min(len(text), place.end + _AROUND)
    spans = {
        (other.location.start, other.location.end, other.type) for other in (*others, finding) if is_masked(other.category, other.type)
    }
    yield "text:"
    shown = [_cut(_masked(text, start, end, spans)) for start, end in ((first, place.start), (place.start, place.end), (place.end, last))]
    line = ("…" if first else "") + shown[0] + "⟦" + shown[1] + "⟧" + shown[2] + ("…" if last < len(text) else "")
    yield from (_INDENT + piece for piece in visible(line, keep_lines=True).split("\n"))
    if finding.category in ("prompt_injection", "jailbreak"):
        undone = normalise(text[place.start : place.end][:_DECODED].encode("utf-8", "replace").decode())
        if undone.kinds:
            yield f"with its hiding undone ({', '.join(undone.kinds)}):"
            yield from (_INDENT + piece for piece in visible(_cut(undone.text), keep_lines=True).split("\n"))


def _masked(text: str, start: int, end: int, spans: set[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    at = start
    for first, last, kind in sorted(spans):
        if last <= at or first >= end:
            continue
        pieces += (text[at : max(at, first)], f"[{kind}]")
        at = last
    pieces.append(text[at:end])
    return "".join(pieces)


def _cut(text: str) -> str:
    half = _MATCH // 2
    return text if len(text) <= _MATCH else f"{text[:half]} … {len(text) - _MATCH:,} characters … {text[-half:]}"


def _one(text: str) -> str:
    return visible(text)
