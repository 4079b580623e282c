"""Every service that the library apprise knows."""

from __future__ import annotations

import logging
from typing import Final

from llmsec_agent.alerting.channels.base import SendError
from llmsec_agent.alerting.message import Message
from llmsec_agent.alerting.templates import Text
from llmsec_tap.errors import ConfigError

_KIND: Final = {"critical": "failure", "high": "failure", "medium": "warning", "low": "info"}


class AppriseChannel:
    def __init__(self, url: str, text: Text) -> None:
        """Raises ConfigError for an address that it does not know."""
        import apprise

        # It logs addresses with what is secret in them.
        logger = logging.getLogger("apprise")
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
        self._text = text
        self._apprise = apprise.Apprise(asset=apprise.AppriseAsset(http_redirects=False))
        if not self._apprise.add(url):
            raise ConfigError(
                "alerting.channels.apprise.url: no address that apprise knows", "https://github.com/caronc/apprise lists them"
            )

    def send(self, message: Message) -> None:
        kind = "success" if message.is_resolved else _KIND[message.alert.priority]
        body = self._text.of(message) or message.text
        try:
            is_sent = self._apprise.notify(body=body, title=message.title, notify_type=kind)
        except Exception as fault:  # noqa: BLE001 - a hundred services' code; what it says may hold a secret
            raise SendError(f"apprise failed ({type(fault).__name__})") from None
        if not is_sent:
            raise SendError("apprise could not send it")
