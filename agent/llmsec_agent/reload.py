"""SIGHUP of an agent: the file is read again and validated whole, then what changed is applied or named.

The warden's process reads it, with the rights that the agent was started with; what the decoder needs of it goes there as a message.
A file that is wrong changes nothing, and is an error in the journal and a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from llmsec_agent.alerts_lane import AlertSettings, alert_settings
from llmsec_agent.config import Config, Loaded
from llmsec_agent.config.secret import Secret
from llmsec_agent.config.show import digest_of
from llmsec_agent.journals import StandardError, Style
from llmsec_analyzer.settings import DetectionSettings
from llmsec_tap.errors import LLMSecError

_DATABASE: Final = "storage.clickhouse."
_ALERTS: Final = ("alerting.rules.", "alerting.tenant_channels.", "alerting.content.")
_COLLECTORS: Final = ("observability.tracing.", "observability.metrics.otlp.")
# What takes effect while the agent runs; everything else is named, and waits for a restart.
_APPLIED: Final = (
    "observability.logging.",
    "security.",
    "capture.pids.",
    "capture.comms.",
    "capture.containers.",
    "capture.all.",
    "alerting.channels.",
    "alerting.content.",
    _DATABASE,
    *_ALERTS,
    *_COLLECTORS,
)


class News(msgspec.Struct):
    """For the decoder, after each attempt."""

    is_accepted: bool
    style: Style
    security: DetectionSettings | None = None  # where they changed
    alerts: AlertSettings | None = None  # likewise
    changed: list[str] = []  # dotted keys
    digest: str = ""  # of the whole configuration


class Reload:
    """Call it where SIGHUP is handled. `tell` takes the message for the decoder."""

    def __init__(
        self,
        loaded: Loaded,
        read: Callable[[], Loaded],
        style_of: Callable[[Config], Style],
        journal: StandardError,
        update: Callable[[Config], list[str]],
        tell: Callable[[bytes], None],
        redeliver: Callable[[Config], list[str]] = lambda _config: [],
    ) -> None:
        """`update` applies another selection, and gives a sentence for each thing in it that needs a restart; `redeliver` likewise for where records go."""
        self._update = update
        self._redeliver = redeliver
        self._config = loaded.config
        self._read = read
        self._style_of = style_of
        self._journal = journal
        self._tell = tell

    def __call__(self) -> None:
        try:
            loaded = self._read()
            config = loaded.config
            sentences = self._redeliver(config)  # first: it reads a password, and nothing has changed where it cannot
        except LLMSecError as fault:
            self._journal.error("config_refused", f"{fault}; the configuration before it stays in force")
            self._tell(msgspec.msgpack.encode(News(is_accepted=False, style=self._journal.style)))
            return
        changed = list(differences(self._config, config))
        before, self._config = self._config, config
        self._journal.style = self._style_of(config)
        # As a whole it comes or goes, with the process that delivers.
        waiting = [name for name in changed if not f"{name}.".startswith(_APPLIED) and f"{name}." != _DATABASE]
        applied = [name for name in changed if name not in waiting and f"{name}." != _DATABASE]
        self._journal.info(
            "config_reloaded",
            "configuration read again: " + (f"changed {', '.join(applied)}" if applied else "nothing to change while it runs"),
            changed=applied,
        )
        sentences += self._update(config) if config.capture != before.capture else []
        if waiting or sentences:
            text = "; ".join([*([f"needs a restart: {', '.join(waiting)}"] if waiting else []), *sentences])
            self._journal.warning("restart_needed", text, keys=waiting)
        # Files of rules and suppressions may have changed under the same names.
        security = config.security if config.security != before.security or config.security.reads_files else None
        # A rule may go to all channels, whichever these are.
        alerts = alert_settings(config) if config.alerting != before.alerting else None
        news = News(
            is_accepted=True, style=self._journal.style, security=security, alerts=alerts, changed=changed, digest=digest_of(loaded)
        )
        self._tell(msgspec.msgpack.encode(news))


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The dotted keys whose values differ."""
    if isinstance(before, msgspec.Struct) and type(before) is type(after):
        for name in before.__struct_fields__:
            yield from differences(getattr(before, name), getattr(after, name), f"{path}.{name}" if path else name)
    elif isinstance(before, Secret) and isinstance(after, Secret):
        if before.reference != after.reference:
            yield path
    elif before != after:
        yield path
