"""The channels, each made from its part of the plan."""

from __future__ import annotations

from llmsec_agent.alerting.channels.base import Channel, SendError
from llmsec_agent.alerting.plan import ChannelPlan
from llmsec_agent.alerting.templates import Text
from llmsec_agent.config import channels as schema
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import Journal

__all__ = ["Channel", "SendError", "channel_of"]


def channel_of(plan: ChannelPlan, journal: Journal) -> Channel:
    """Raises ConfigError where what is secret is no such thing."""
    from llmsec_agent.alerting.channels.chat import SlackChannel, TeamsChannel
    from llmsec_agent.alerting.channels.hooks import AlertmanagerChannel, OCSFChannel, WebhookChannel
    from llmsec_agent.alerting.channels.mail import EmailChannel
    from llmsec_agent.alerting.channels.others import AppriseChannel
    from llmsec_agent.alerting.channels.paging import OpsgenieChannel, PagerDutyChannel
    from llmsec_agent.alerting.channels.syslog import SyslogChannel
    from llmsec_agent.alerting.channels.web import Http
    from llmsec_agent.config.checks import fault_of

    settings, secrets = plan.settings, plan.secrets
    is_html = plan.name == "email" and (plan.template or "").lstrip().startswith("<")
    text = Text(plan.template, plan.name, journal, html=is_html)

    def http(url: str, headers: dict[str, str] | None = None) -> Http:
        if fault_of(url):
            raise ConfigError(f"alerting.channels.{plan.name}: its secret is no address with https:// and a host")
        if "token" in secrets:
            headers = {**(headers or {}), "Authorization": f"Bearer {secrets['token']}"}
        return Http(url, timeout=settings.timeout, ca=plan.ca, headers=headers)

    match settings:
        case schema.Slack():
            return SlackChannel(http(secrets["webhook_url"]), text, settings.default_channel)
        case schema.Teams():
            return TeamsChannel(http(secrets["webhook_url"]), text)
        case schema.PagerDuty():
            return PagerDutyChannel(http(settings.url), text, secrets["routing_key"])
        case schema.Opsgenie():
            return OpsgenieChannel(http(settings.url.rstrip("/"), {"Authorization": f"GenieKey {secrets['api_key']}"}), text)
        case schema.Webhook():
            return WebhookChannel(http(settings.url), text, secrets.get("signing_key"))
        case schema.OCSF():
            return OCSFChannel(http(settings.url))
        case schema.Alertmanager():
            return AlertmanagerChannel(http(settings.url.rstrip("/") + "/api/v2/alerts"), text, settings.stands)
        case schema.Email():
            return EmailChannel(settings, text, secrets.get("password"), plan.ca)
        case schema.Syslog():
            return SyslogChannel(settings, text, plan.ca)
        case schema.Apprise():
            return AppriseChannel(secrets["url"], text)
