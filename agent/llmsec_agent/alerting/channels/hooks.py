"""What machines take over HTTP: a signed webhook, OCSF Detection Findings, and Alertmanager's API."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Final

from llmsec_agent.alerting.channels.paging import plain
from llmsec_agent.alerting.channels.web import Http
from llmsec_agent.alerting.message import Message, cut, short_id
from llmsec_agent.alerting.templates import Text
from llmsec_tap import __version__

_OCSF_SEVERITY: Final = {"low": (2, "Low"), "medium": (3, "Medium"), "high": (4, "High"), "critical": (5, "Critical")}


class WebhookChannel:
    """Signed as Standard Webhooks has it (https://www.standardwebhooks.com): the id, the time of sending and the body."""

    def __init__(self, http: Http, text: Text, signing_key: str | None, clock: Callable[[], float] = time.time) -> None:
        self._http = http
        self._text = text
        self._key = key_bytes(signing_key) if signing_key is not None else None
        self._clock = clock

    def send(self, message: Message) -> None:
        body = self._body(message)
        now = str(int(self._clock()))
        headers = {"webhook-id": message.uid, "webhook-timestamp": now}
        if self._key is not None:
            headers["webhook-signature"] = "v1," + sign(self._key, message.uid, now, body)
        self._http.post(body, headers=headers)

    def _body(self, message: Message) -> bytes:
        own = self._text.of(message, json_text)
        if own is not None:
            try:
                json.loads(own)
            except (ValueError, RecursionError):
                self._text.refuse("what it gives is no JSON")
            else:
                return own.encode("utf-8", "replace")
        made = {"type": f"alert.{message.alert.state}", "timestamp": message.at.isoformat(timespec="milliseconds"), "data": plain(message)}
        return json.dumps(made, ensure_ascii=False).encode("utf-8", "replace")


class OCSFChannel:
    """A Detection Finding (class 2004) of OCSF 1.3: created, or closed."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def send(self, message: Message) -> None:
        self._http.post(finding(message))


class AlertmanagerChannel:
    def __init__(self, http: Http, text: Text, stands_s: float) -> None:
        self._http = http
        self._text = text
        self._stands = dt.timedelta(seconds=min(stands_s, 10 * 365 * 86_400))

    def send(self, message: Message) -> None:
        alert = message.alert
        # Its identity are its labels: they must be the same when it resolves.
        labels = {"alertname": alert.rule, "severity": alert.priority, "dedup_key": short_id(alert.dedup_key), "tenant": alert.tenant or ""}
        annotations = {"summary": message.title, "description": self._text.of(message) or message.text, "alert_id": alert.alert_id}
        if alert.exchange_id:
            annotations["exchange_id"] = alert.exchange_id
        ends = message.at if message.is_resolved else message.at + self._stands
        times = {"endsAt": _rfc3339(ends)} if message.is_resolved else {"startsAt": _rfc3339(message.at), "endsAt": _rfc3339(ends)}
        self._http.post([{"labels": {name: value for name, value in labels.items() if value}, "annotations": annotations, **times}])


def finding(message: Message) -> dict[str, Any]:
    alert = message.alert
    activity, caption, status = (3, "Close", (4, "Resolved")) if message.is_resolved else (1, "Create", (1, "New"))
    number, severity = _OCSF_SEVERITY[alert.priority]
    ms = int(message.at.timestamp() * 1000)
    return {
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "category_uid": 2,
        "category_name": "Findings",
        "activity_id": activity,
        "activity_name": caption,
        "type_uid": 200_400 + activity,
        "severity_id": number,
        "severity": severity,
        "status_id": status[0],
        "status": status[1],
        "time": ms,
        "count": max(1, alert.count),
        "message": message.title,
        "metadata": {
            "version": "1.3.0",
            "uid": message.uid,
            "product": {"name": "LLMSec Trace", "vendor_name": "LLMSec Trace", "version": __version__},
        },
        "finding_info": {
            "uid": short_id(alert.dedup_key),
            "title": alert.rule,
            "desc": cut(message.text, 4000),
            "types": sorted({found.category for found in alert.findings} | {found.kind for found in alert.deviations}),
            "created_time": ms,
            "analytic": {"type_id": 1, "type": "Rule", "uid": alert.rule, "name": alert.rule},
        },
        "evidences": [{"data": plain(message)}],
    }


def key_bytes(key: str) -> bytes:
    """`whsec_` and base64, as the standard writes keys; any other text is the key itself."""
    if key.startswith("whsec_"):
        try:
            return base64.b64decode(key.removeprefix("whsec_"), validate=True)
        except (ValueError, binascii.Error):
            pass
    return key.encode()


def sign(key: bytes, uid: str, timestamp: str, body: bytes) -> str:
    return base64.b64encode(hmac.new(key, f"{uid}.{timestamp}.".encode() + body, hashlib.sha256).digest()).decode()


def json_text(text: str) -> str:
    """For within the quotes of a template's JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _rfc3339(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
