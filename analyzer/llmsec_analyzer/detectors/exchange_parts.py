"""What detection is given of an exchange, every text with its role and its place, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from llmsec_tap.model import AnomalyCount, Exchange, Finding, Message

_RETRIEVED = frozenset(("document", "search_result", "context"))


class TextPart(msgspec.Struct, frozen=True):
    """`part` names the place: `request.messages[2].parts[0]`, `response.messages[0].parts[1].arguments`, `request.tools[0]`."""

    part: str
    role: str
    text: str
    kind: str  # the part's type: text, reasoning, refusal, tool_call, tool_call_response, tool_definition
    tool: str = ""


class Report(msgspec.Struct):
    """What an exchange holds. `marks` are the names of anomalies: what was not scanned, or not as it should have been."""

    findings: list[Finding]
    risk_score: int | None = 0
    risk_reasons: list[str] = []
    marks: list[str] = []

    def applied(self, exchange: Exchange) -> Exchange:
        """The exchange with this report in it."""
        exchange.findings = self.findings
        exchange.risk_score = self.risk_score
        exchange.risk_reasons = self.risk_reasons
        exchange.anomalies = [
            *exchange.anomalies, *(AnomalyCount(name=name, count=self.marks.count(name)) for name in sorted(set(self.marks))),
        ]  # fmt: skip
        return exchange


def text_parts(exchange: Exchange) -> Iterator[TextPart]:
    """In the order of the exchange: the request's messages, its tool definitions, the answer's choices."""
    yield from _of_messages("request", exchange.request.messages)
    for number, tool in enumerate(exchange.request.tools):
        if tool.description:
            yield TextPart(f"request.tools[{number}]", "tool", tool.description, "tool_definition", tool.name)
    yield from _of_messages("response", exchange.response.messages)
    if exchange.response.error_message:
        yield TextPart("response.error_message", "assistant", exchange.response.error_message, "error")


def _of_messages(side: str, messages: list[Message]) -> Iterator[TextPart]:
    for number, message in enumerate(messages):
        role = message.role
        for index, part in enumerate(message.parts):
            place = f"{side}.messages[{number}].parts[{index}]"
            if part.type == "tool_call":
                if part.arguments:
                    yield TextPart(f"{place}.arguments", "tool_call", part.arguments, "tool_call", part.name or "")
            elif part.content:
                own = "tool" if part.type == "tool_call_response" else "document" if part.type in _RETRIEVED else role
                yield TextPart(place, own, part.content, part.type, part.name or "")
