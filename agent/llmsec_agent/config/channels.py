"""Where alerts can go (alerting.channels): each channel's address, its secrets, and how long it is tried."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from llmsec_agent.config.secret import Secret
from llmsec_analyzer.typed_files import key

Name = Annotated[str, key(filled=True)]
Port = Annotated[int, key(at_least=1, at_most=65_535)]
ChannelName = Literal["slack", "pagerduty", "email", "webhook", "teams", "opsgenie", "apprise", "ocsf", "syslog", "alertmanager"]
CHANNELS: tuple[ChannelName, ...] = get_args(ChannelName)

_TEMPLATE = key("file of a Jinja template for the text (docs/alerts-channels.md)", filled=True)
_CA = key("PEM file of the authorities to trust in place of the host's", filled=True)


class Attempts(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    timeout: Annotated[float, key("until an attempt failed", unit="duration", above=0, at_most=300)] = 10.0
    retry_attempts: Annotated[int, key("further attempts, with growing pauses; then it is a dead letter", at_least=0, at_most=100)] = 3


class Slack(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    webhook_url: Annotated[Secret | None, key("address of the webhook, which is a secret: `env:NAME` or `file:/path`")] = None
    default_channel: Annotated[str | None, key("channel, for webhooks that let the sender choose", filled=True)] = None
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class PagerDuty(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    routing_key: Annotated[Secret | None, key("integration key of Events API v2: `env:NAME` or `file:/path`")] = None
    url: Annotated[str, key("events.eu.pagerduty.com for accounts in the EU", filled=True, address=True)] = (
        "https://events.pagerduty.com/v2/enqueue"
    )
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Email(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    smtp_host: Annotated[str, key("mail server", filled=True)]
    smtp_port: Annotated[int, key("port", at_least=1, at_most=65_535)] = 587
    tls: Annotated[Literal["starttls", "tls", "none"], key("starttls: required after connecting; tls: from the first byte")] = "starttls"
    from_address: Annotated[str, key("sender", filled=True)]
    to: Annotated[tuple[Name, ...], key("recipients; required")] = ()
    username: Annotated[str | None, key("user at the mail server", filled=True)] = None
    password: Annotated[Secret | None, key("its password: `env:NAME` or `file:/path`")] = None
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Webhook(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    url: Annotated[str, key("address", filled=True, address=True)]
    token: Annotated[Secret | None, key("sent as `Authorization: Bearer`: `env:NAME` or `file:/path`")] = None
    signing_key: Annotated[Secret | None, key("signs what is sent (Standard Webhooks, HMAC-SHA256): `env:NAME` or `file:/path`")] = None
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Teams(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    webhook_url: Annotated[Secret | None, key("address of the workflow, which is a secret: `env:NAME` or `file:/path`")] = None
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Opsgenie(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    api_key: Annotated[Secret | None, key("key of an API integration: `env:NAME` or `file:/path`")] = None
    url: Annotated[str, key("https://api.eu.opsgenie.com for accounts in the EU", filled=True, address=True)] = "https://api.opsgenie.com"
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Apprise(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    url: Annotated[Secret | None, key("address as the library apprise has it, which is a secret: `env:NAME` or `file:/path`")] = None
    template: Annotated[str | None, _TEMPLATE] = None


class OCSF(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    url: Annotated[str, key("where Detection Findings are posted as JSON", filled=True, address=True)]
    token: Annotated[Secret | None, key("sent as `Authorization: Bearer`: `env:NAME` or `file:/path`")] = None
    ca_file: Annotated[str | None, _CA] = None


class Syslog(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    host: Annotated[str, key("server", filled=True)]
    port: Annotated[int, key("port", at_least=1, at_most=65_535)] = 6514
    transport: Annotated[Literal["tls", "tcp", "udp"], key("tls: RFC 5425; tcp: RFC 6587 with octet counts; udp: RFC 5426")] = "tls"
    facility: Annotated[
        Literal["auth", "daemon", "audit", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"], key("facility")
    ] = "local0"
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Alertmanager(Attempts, kw_only=True, frozen=True, forbid_unknown_fields=True):
    url: Annotated[str, key("of Alertmanager, without /api/v2", filled=True, address=True)]
    token: Annotated[Secret | None, key("sent as `Authorization: Bearer`: `env:NAME` or `file:/path`")] = None
    stands: Annotated[float, key("how long an alert fires there that nothing resolves", unit="duration", above=0)] = 3600.0
    template: Annotated[str | None, _TEMPLATE] = None
    ca_file: Annotated[str | None, _CA] = None


class Channels(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    slack: Annotated[Slack | None, key("Slack")] = None
    pagerduty: Annotated[PagerDuty | None, key("PagerDuty")] = None
    email: Annotated[Email | None, key("e-mail")] = None
    webhook: Annotated[Webhook | None, key("HTTP POST of JSON")] = None
    teams: Annotated[Teams | None, key("Microsoft Teams")] = None
    opsgenie: Annotated[Opsgenie | None, key("Opsgenie")] = None
    apprise: Annotated[Apprise | None, key("any service that the library apprise knows (pip install 'llmsec-trace[apprise]')")] = None
    ocsf: Annotated[OCSF | None, key("a data lake or SIEM that takes OCSF over HTTP")] = None
    syslog: Annotated[Syslog | None, key("a SIEM that takes syslog (RFC 5424)")] = None
    alertmanager: Annotated[Alertmanager | None, key("Prometheus Alertmanager")] = None


Settings = Slack | PagerDuty | Email | Webhook | Teams | Opsgenie | Apprise | OCSF | Syslog | Alertmanager
# Without it the channel cannot send.
REQUIRED: dict[ChannelName, str] = {
    "slack": "webhook_url",
    "pagerduty": "routing_key",
    "teams": "webhook_url",
    "opsgenie": "api_key",
    "apprise": "url",
}
