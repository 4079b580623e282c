"""PagerDuty (Events API v2) and Opsgenie (Alert API v2): an incident by dedup key, which is resolved by the same."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import msgspec

from llmsec_agent.alerting.channels.web import Http
from llmsec_agent.alerting.message import Message, cut, short_id
from llmsec_agent.alerting.templates import Text

_SEVERITY: Final = {"critical": "critical", "high": "error", "medium": "warning", "low": "info"}
_PRIORITY: Final = {"critical": "P1", "high": "P2", "medium": "P3", "low": "P4"}


class PagerDutyChannel:
    def __init__(self, http: Http, text: Text, routing_key: str) -> None:
        self._http = http
        self._text = text
        self._key = routing_key

    def send(self, message: Message) -> None:
        alert = message.alert
        event: dict[str, Any] = {"routing_key": self._key, "dedup_key": short_id(alert.dedup_key)}
        if message.is_resolved:
            self._http.post({**event, "event_action": "resolve"})
            return
        payload = {
            "summary": cut(self._text.of(message) or message.title, 1024),
            "source": alert.node or alert.server or "llmsec-trace",
            "severity": _SEVERITY[alert.priority],
            "timestamp": message.at.isoformat(timespec="milliseconds"),
            "component": alert.model or alert.process or "language model",
            "group": alert.tenant or "no tenant",
            "class": alert.rule,
            "custom_details": plain(message),
        }
        self._http.post({**event, "event_action": "trigger", "client": "LLMSec Trace", "payload": payload})


class OpsgenieChannel:
    def __init__(self, http: Http, text: Text) -> None:
        self._http = http
        self._text = text

    def send(self, message: Message) -> None:
        alert = message.alert
        alias = short_id(alert.dedup_key)
        source = cut(alert.node or "llmsec-trace", 100)
        if message.is_resolved:
            path = f"/v2/alerts/{quote(alias, safe='')}/close?identifierType=alias"
            self._http.post({"source": source, "note": cut(message.title, 25_000)}, path=path)
            return
        self._http.post(
            {
                "message": cut(message.title, 130),
                "alias": alias,
                "description": cut(self._text.of(message) or message.text, 15_000),
                "priority": _PRIORITY[alert.priority],
                "source": source,
                "entity": cut(alert.model or alert.server, 512),
                "tags": [cut(tag, 50) for tag in ("llmsec-trace", alert.rule, alert.tenant) if tag],
                "details": {name: cut(value, 500) for name, value in message.facts},
            },
            path="/v2/alerts",
        )


def plain(message: Message) -> dict[str, Any]:
    """The alert's fields that say something."""
    made: dict[str, Any] = msgspec.to_builtins(message.alert)
    return {name: value for name, value in made.items() if value not in (None, "", []) and name != "channels"}
