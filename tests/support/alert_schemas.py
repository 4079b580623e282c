"""What the vendors' documentation says of a payload, as JSON schemas.

Slack: docs.slack.dev/reference/block-kit/blocks. PagerDuty: developer.pagerduty.com/docs/events-api-v2-overview. Opsgenie:
docs.opsgenie.com/docs/alert-api. Teams: learn.microsoft.com (incoming webhooks with workflows), adaptivecards.io/explorer. Alertmanager: its
api/v2/openapi.yaml. OCSF: schema.ocsf.io/1.3.0/classes/detection_finding. Webhook: the Standard Webhooks specification.
"""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string", "minLength": 1}


def _text(most: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None, *, more: bool = False) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": more,
    }


_MRKDWN = _object({"type": {"const": "mrkdwn"}, "text": _text(3000)})
_FIELD = _object({"type": {"const": "mrkdwn"}, "text": _text(2000)})
SLACK = _object(
    {
        "text": _text(40_000),
        "blocks": {
            "type": "array",
            "minItems": 1,
            "maxItems": 50,
            "items": {
                "oneOf": [
                    _object(
                        {
                            "type": {"const": "header"},
                            "text": _object({"type": {"const": "plain_text"}, "text": _text(150)}, {"emoji": {"type": "boolean"}}),
                        }
                    ),
                    _object({"type": {"const": "section"}, "text": _MRKDWN}),
                    _object({"type": {"const": "section"}, "fields": {"type": "array", "minItems": 1, "maxItems": 10, "items": _FIELD}}),
                    _object({"type": {"const": "context"}, "elements": {"type": "array", "minItems": 1, "maxItems": 10, "items": _MRKDWN}}),
                ]
            },
        },
    },
    {"channel": _TEXT},
)

_DATE_TIME = {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:?\d\d|Z)$"}
PAGERDUTY = {
    "oneOf": [
        _object(
            {
                "routing_key": {"type": "string", "pattern": "^[A-Za-z0-9]{32}$"},
                "event_action": {"const": "trigger"},
                "dedup_key": _text(255),
                "payload": _object(
                    {"summary": _text(1024), "source": _TEXT, "severity": {"enum": ["critical", "error", "warning", "info"]}},
                    {"timestamp": _DATE_TIME, "component": _TEXT, "group": _TEXT, "class": _TEXT, "custom_details": {"type": "object"}},
                ),
            },
            {"client": _TEXT, "client_url": _TEXT},
        ),
        _object(
            {
                "routing_key": {"type": "string", "pattern": "^[A-Za-z0-9]{32}$"},
                "event_action": {"enum": ["resolve", "acknowledge"]},
                "dedup_key": _text(255),
            }
        ),
    ]
}

OPSGENIE = _object(
    {"message": _text(130)},
    {
        "alias": _text(512),
        "description": _text(15_000),
        "priority": {"enum": ["P1", "P2", "P3", "P4", "P5"]},
        "source": _text(100),
        "entity": {"type": "string", "maxLength": 512},
        "tags": {"type": "array", "maxItems": 20, "items": _text(50)},
        "details": {"type": "object", "additionalProperties": {"type": "string"}},
    },
)
OPSGENIE_CLOSE = _object({}, {"source": _text(100), "note": _text(25_000), "user": _text(100)})

_BLOCK = _object(
    {"type": {"const": "TextBlock"}, "text": _TEXT},
    {
        "weight": {"enum": ["lighter", "default", "bolder"]},
        "size": {"enum": ["small", "default", "medium", "large", "extraLarge"]},
        "color": {"enum": ["default", "dark", "light", "accent", "good", "warning", "attention"]},
        "wrap": {"type": "boolean"},
    },
)
_FACTS = _object(
    {"type": {"const": "FactSet"}, "facts": {"type": "array", "minItems": 1, "items": _object({"title": _TEXT, "value": _TEXT})}}
)
TEAMS = _object(
    {
        "type": {"const": "message"},
        "attachments": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": _object(
                {
                    "contentType": {"const": "application/vnd.microsoft.card.adaptive"},
                    "content": _object(
                        {
                            "type": {"const": "AdaptiveCard"},
                            "version": {"enum": ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"]},
                            "body": {"type": "array", "minItems": 1, "items": {"oneOf": [_BLOCK, _FACTS]}},
                        },
                        {"$schema": {"const": "http://adaptivecards.io/schemas/adaptive-card.json"}},
                    ),
                },
                {"contentUrl": {"type": "null"}},
            ),
        },
    }
)

_LABELS = {"type": "object", "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}, "additionalProperties": {"type": "string"}}
ALERTMANAGER = {
    "type": "array",
    "items": _object(
        {"labels": {**_LABELS, "required": ["alertname"]}},
        {"annotations": _LABELS, "startsAt": _DATE_TIME, "endsAt": _DATE_TIME, "generatorURL": {"type": "string", "format": "uri"}},
    ),
}

_ID = {"type": "integer", "minimum": 0}
_MS = {"type": "integer", "minimum": 1_000_000_000_000}
OCSF = {
    **_object(
        {
            "activity_id": {"enum": [0, 1, 2, 3, 99]},
            "category_uid": {"const": 2},
            "class_uid": {"const": 2004},
            "type_uid": {"enum": [200_400, 200_401, 200_402, 200_403, 200_499]},
            "severity_id": {"enum": [0, 1, 2, 3, 4, 5, 6, 99]},
            "time": _MS,
            "metadata": _object(
                {"version": {"const": "1.3.0"}, "product": _object({"vendor_name": _TEXT}, {"name": _TEXT, "version": _TEXT})},
                {"uid": _TEXT},
            ),
            "finding_info": _object(
                {"uid": _TEXT, "title": _TEXT},
                {
                    "desc": _TEXT,
                    "types": {"type": "array", "items": _TEXT},
                    "created_time": _MS,
                    "analytic": _object({"type_id": {"enum": [0, 1, 2, 3, 4, 99]}}, {"type": _TEXT, "uid": _TEXT, "name": _TEXT}),
                },
            ),
        },
        {
            "activity_name": _TEXT,
            "category_name": {"const": "Findings"},
            "class_name": {"const": "Detection Finding"},
            "severity": _TEXT,
            "status_id": {"enum": [0, 1, 2, 3, 4, 5, 6, 99]},
            "status": _TEXT,
            "count": {"type": "integer", "minimum": 1},
            "message": _TEXT,
            "evidences": {"type": "array", "items": _object({}, {"data": {"type": "object"}})},
        },
    )
}

WEBHOOK = _object(
    {
        "type": {"enum": ["alert.firing", "alert.resolved"]},
        "timestamp": _DATE_TIME,
        "data": _object({"alert_id": _TEXT, "rule": _TEXT}, more=True),
    }
)
