"""Slack (an incoming webhook, Block Kit) and Microsoft Teams (a workflow's webhook, Adaptive Card)."""

from __future__ import annotations

import re
from typing import Any, Final

from llmsec_agent.alerting.channels.web import Http
from llmsec_agent.alerting.message import Message, cut
from llmsec_agent.alerting.templates import Text

_EMOJI: Final = {"critical": ":rotating_light:", "high": ":red_circle:", "medium": ":large_orange_circle:", "low": ":large_blue_circle:"}
_COLOUR: Final = {"critical": "attention", "high": "attention", "medium": "warning", "low": "accent"}
# https://docs.slack.dev/reference/block-kit/blocks
_SECTION_CHARS: Final = 3000
_FIELD_CHARS: Final = 2000
_HEADER_CHARS: Final = 150
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]()#<>])")


class SlackChannel:
    def __init__(self, http: Http, text: Text, default_channel: str | None) -> None:
        self._http = http
        self._text = text
        self._channel = default_channel

    def send(self, message: Message) -> None:
        own = self._text.of(message, mrkdwn)
        icon = ":white_check_mark:" if message.is_resolved else _EMOJI[message.alert.priority]
        blocks: list[dict[str, Any]] = [
            {"type": "header", "text": {"type": "plain_text", "text": cut(f"{icon} {message.title}", _HEADER_CHARS), "emoji": True}}
        ]
        if own is not None:
            blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": cut(own, _SECTION_CHARS)}})
        else:
            fields = [
                {"type": "mrkdwn", "text": cut(f"*{name}*\n{mrkdwn(value)}", _FIELD_CHARS)}
                for name, value in message.facts
                if name != "Alert"
            ]
            # Ten are the most that a section takes.
            blocks += [{"type": "section", "fields": fields[at : at + 10]} for at in range(0, len(fields), 10)]
        blocks.append(
            {"type": "context", "elements": [{"type": "mrkdwn", "text": cut(f"LLMSec Trace {mrkdwn(message.alert.alert_id)}", 2000)}]}
        )
        self._http.post({**({"channel": self._channel} if self._channel else {}), "text": mrkdwn(message.title), "blocks": blocks})


class TeamsChannel:
    def __init__(self, http: Http, text: Text) -> None:
        self._http = http
        self._text = text

    def send(self, message: Message) -> None:
        own = self._text.of(message, markdown)
        colour = "good" if message.is_resolved else _COLOUR[message.alert.priority]
        title = {"type": "TextBlock", "text": markdown(message.title), "weight": "bolder", "size": "large", "color": colour, "wrap": True}
        facts = [{"title": name, "value": markdown(cut(value, 600))} for name, value in message.facts]
        rest = {"type": "TextBlock", "text": own, "wrap": True} if own is not None else {"type": "FactSet", "facts": facts}
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [title, rest],
        }
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
        self._http.post({"type": "message", "attachments": [attachment]})


def mrkdwn(text: str) -> str:
    """Names that strangers chose mention nobody and link nowhere."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)
