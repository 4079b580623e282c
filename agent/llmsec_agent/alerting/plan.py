"""What the sending process needs of the configuration, read with the rights of whoever started the agent."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final

import msgspec

from llmsec_agent.config.channels import CHANNELS, ChannelName, Channels, Settings
from llmsec_agent.config.checks import fault_of
from llmsec_agent.config.schema import Alerting
from llmsec_agent.config.secret import Secret
from llmsec_tap.errors import ConfigError

_LIBRARIES: Final = ("jinja2", "pybreaker", "stamina", "urllib3")
_MAX_TEMPLATE_BYTES: Final = 64 << 10
_MAX_CA_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class ChannelPlan:
    """`settings` have no secrets: `secrets` has their texts by key, and shows them to nobody. `template`: its text, and None without one."""

    name: ChannelName
    settings: Settings
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    template: str | None = None
    ca: str | None = None  # PEM


@dataclass(frozen=True)
class SenderPlan:
    """`store`: the folder; `name`: how it is called, where `store` is how this process reaches it."""

    store: str
    channels: tuple[ChannelPlan, ...]
    content: bool = False
    name: str = ""


def plan_of(store: str, alerting: Alerting) -> SenderPlan:
    """Raises ConfigError where a secret, a template or a certificate cannot be read, or a library is missing."""
    plans = []
    for name in CHANNELS:
        settings = getattr(alerting.channels, name)
        if settings is not None:
            plans.append(_channel(name, settings))
    missing = [library for library in _LIBRARIES if find_spec(library) is None] if plans else []
    if missing:
        raise ConfigError(f"alerts need the libraries {', '.join(missing)}", "pip install 'llmsec-trace[alerts]'")
    if alerting.channels.apprise is not None and find_spec("apprise") is None:
        raise ConfigError("alerting.channels.apprise needs the library apprise", "pip install 'llmsec-trace[apprise]'")
    return SenderPlan(store, tuple(plans), alerting.content)


def _channel(name: ChannelName, settings: Settings) -> ChannelPlan:
    secrets = {key: value.read() for key in settings.__struct_fields__ if isinstance(value := getattr(settings, key), Secret)}
    where = f"alerting.channels.{name}"
    if "webhook_url" in secrets and fault_of(secrets["webhook_url"]):
        raise ConfigError(
            f"{where}.webhook_url: what the secret holds is no address", "https://, a host, and the path that the service gave"
        )
    template, ca_file = getattr(settings, "template", None), getattr(settings, "ca_file", None)
    ca = _read(ca_file, f"{where}.ca_file", _MAX_CA_BYTES) if ca_file is not None else None
    if ca is not None:
        try:
            ssl.create_default_context(cadata=ca)
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"{where}.ca_file: {ca_file}: no certificates in PEM form") from None
    return ChannelPlan(
        name,
        msgspec.structs.replace(settings, **dict.fromkeys(secrets)),
        secrets,
        _read(template, f"{where}.template", _MAX_TEMPLATE_BYTES) if template is not None else None,
        ca,
    )


def _read(path: str, where: str, most: int) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"{where}: {path}: not a regular file")
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            data = file.read(most + 1)
    except OSError as fault:
        raise ConfigError(f"{where}: {path}: {fault.strerror}") from None
    except ValueError:
        raise ConfigError(f"{where}: it is not a path") from None
    if len(data) > most:
        raise ConfigError(f"{where}: {path}: larger than {most >> 10} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path}: not UTF-8") from None


# --- to the process that sends, over a socket ------------------------------------------------------------------------------------

_Sent = tuple[Channels, dict[str, dict[str, str]], dict[str, str], dict[str, str], bool]


def encode(plan: SenderPlan) -> bytes:
    channels = Channels(**{channel.name: channel.settings for channel in plan.channels})  # type: ignore[arg-type]
    secrets = {channel.name: dict(channel.secrets) for channel in plan.channels}
    templates = {channel.name: channel.template for channel in plan.channels if channel.template is not None}
    authorities = {channel.name: channel.ca for channel in plan.channels if channel.ca is not None}
    return msgspec.msgpack.encode((channels, secrets, templates, authorities, plan.content))


def decode(plan: SenderPlan, said: bytes) -> SenderPlan:
    """The plan for the same folder after a message."""
    channels, secrets, templates, authorities, content = msgspec.msgpack.decode(said, type=_Sent, dec_hook=_no_secret)
    plans = tuple(
        ChannelPlan(name, settings, secrets.get(name, {}), templates.get(name), authorities.get(name))
        for name in CHANNELS
        if (settings := getattr(channels, name)) is not None
    )
    return replace(plan, channels=plans, content=content)


def _no_secret(kind: type, value: Any) -> Any:
    raise NotImplementedError(kind)
