"""What detection is given of an exchange, every text with its role and its place, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal
from urllib.parse import unquote_plus

import msgspec

from llmsec_analyzer.engine.excess import Mask
from llmsec_analyzer.judge.roles import OPERATOR_ROLES
from llmsec_analyzer.risk import OWN_RULES, add_findings, security_score, types_of
from llmsec_tap.anomalies import UNREAD
from llmsec_tap.model import AnomalyCount, Exchange, Finding, Message

_RETRIEVED = frozenset(("document", "search_result", "context"))


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a text stands in an exchange: `str` gives it as records have it, `request.messages[2].parts[0]` for example.

    `index`: of the message, choice, tool or text in its list; `part`: of the part in its message; `field`: of the part.
    """

    group: Literal["request.messages", "request.tools", "other_texts", "response.messages", "response.error_message", "tags"]
    index: int = 0
    part: int | None = None
    field: str = ""

    def __str__(self) -> str:
        if self.group == "response.error_message":
            return self.group
        if self.group == "tags":
            return f"tags.{self.field}"
        part = "" if self.part is None else f".parts[{self.part}]"
        return f"{self.group}[{self.index}]{part}{self.field and '.'}{self.field}"


class TextPart(msgspec.Struct, frozen=True):
    place: Place
    role: str
    text: str
    kind: str  # the part's type: text, reasoning, refusal, tool_call, tool_call_response, tool_definition, other
    tool: str = ""

    @property
    def is_answer(self) -> bool:
        """Whether it is of a choice of the answer."""
        return self.place.group == "response.messages"

    @property
    def is_request(self) -> bool:
        """Whether the client wrote it: also what it puts into the mouth of the model."""
        if self.place.group == "other_texts":
            return self.role != "assistant"
        return not self.is_answer and self.place.group != "response.error_message"


def operator_text(parts: Sequence[TextPart]) -> str:
    """What the operator says in a request: system prompts, and what the tools are for."""
    prompt = [part.text for part in parts if part.is_request and part.role in OPERATOR_ROLES]
    return "\n".join((*prompt, *(part.text for part in parts if part.kind == "tool_definition"))) if prompt else ""


class Report(msgspec.Struct):
    """What an exchange holds. `marks` are the names of anomalies: what was not scanned, or not as it should have been.

    `dropped`: findings beyond those kept, by rule; `masks`: where they are, for redaction. `redacting`: rules that found something and
    whose matches the configuration has masked.
    """

    findings: list[Finding]
    risk_score: int | None = 0
    risk_reasons: list[str] = []
    marks: list[str] = []
    dropped: dict[str, int] = {}
    masks: list[Mask] = []
    redacting: list[str] = []

    def applied(self, exchange: Exchange) -> Exchange:
        """The exchange with this report in it, in place of what was found before, but for what rules of the application's own found."""
        own = [finding for finding in exchange.findings if finding.rule_id.startswith(OWN_RULES)]
        exchange.findings = self.findings
        exchange.risk_score = self.risk_score
        exchange.risk_reasons = self.risk_reasons
        exchange.security_score = security_score(self.findings) if self.risk_score is not None else None
        add_findings(exchange, own)
        exchange.pii_types = types_of(self.findings, "pii")
        exchange.secret_types = types_of(self.findings, "secret")
        exchange.anomalies = [
            *exchange.anomalies, *(AnomalyCount(name=name, count=self.marks.count(name)) for name in sorted(set(self.marks))),
        ]  # fmt: skip
        if self.dropped:
            exchange.anomalies.append(AnomalyCount(name="findings_limit", count=sum(self.dropped.values())))
            exchange.risk_reasons = [
                *exchange.risk_reasons,
                *(f"{rule}: {count:,} more, not kept" for rule, count in sorted(self.dropped.items())),
            ]
        return exchange


def unread(exchange: Exchange) -> list[str]:
    """Anomalies that say that something of the exchange was not read."""
    names: list[str] = [anomaly.name for anomaly in exchange.anomalies if anomaly.name in UNREAD]
    return names or (["unreadable"] if exchange.completeness == "unreadable" else [])


# Facts of a record that are findings of their own, and the rules that say so.
NOTED: Final = {"key_new_workload": "key.new_workload", "key_shared": "key.shared", "mcp_tool_changed": "tool.changed"}


def noted(exchange: Exchange) -> list[str]:
    """Those of them that the record has."""
    return [anomaly.name for anomaly in exchange.anomalies if anomaly.name in NOTED]


def text_parts(exchange: Exchange) -> Iterator[TextPart]:
    """In the order of the exchange: the request's messages, its tool definitions, the answer's choices."""
    yield from _of_messages("request.messages", exchange.request.messages)
    for number, tool in enumerate(exchange.request.tools):
        if tool.description:
            yield TextPart(Place("request.tools", number), "tool", tool.description, "tool_definition", tool.name)
    for number, other in enumerate(exchange.other_texts):
        role = "tool" if other.path.startswith("$.tools") else "assistant" if other.path.startswith("response") else "user"
        yield TextPart(Place("other_texts", number), role, other.text, "other")
    read = {other.text for other in exchange.other_texts}
    for name, value in exchange.tags.items():
        if value not in read:
            yield TextPart(Place("tags", field=name), "user", value, "other")
    yield from _of_messages("response.messages", exchange.response.messages)
    if exchange.response.error_message:
        yield TextPart(Place("response.error_message"), "assistant", exchange.response.error_message, "error")


def _of_messages(group: Literal["request.messages", "response.messages"], messages: list[Message]) -> Iterator[TextPart]:
    for number, message in enumerate(messages):
        role = message.role
        for index, part in enumerate(message.parts):
            place = Place(group, number, index)
            if part.type == "tool_call":
                if part.arguments:
                    yield TextPart(Place(group, number, index, "arguments"), "tool_call", part.arguments, "tool_call", part.name or "")
            elif part.content:
                own = "tool" if part.type == "tool_call_response" else "document" if part.type in _RETRIEVED else role
                yield TextPart(place, own, part.content, part.type, part.name or "")
            elif part.uri and "?" in part.uri:
                yield TextPart(Place(group, number, index, "uri"), role, unquote_plus(part.uri), "uri")
