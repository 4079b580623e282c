"""The configuration file: YAML, parsed once into frozen settings; what is not known is an error that names what may be meant."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import msgspec

from llmsec_analyzer.settings import (
    BudgetSettings,
    DetectionSettings,
    InjectionSettings,
    ModelSettings,
    NamedPattern,
    NamesSettings,
    OutputSettings,
    PatternAction,
    PIISettings,
    SecretSettings,
    ToolPolicy,
)
from llmsec_analyzer.yaml_files import read_yaml, shown
from llmsec_tap.errors import ConfigError


class Config(msgspec.Struct, kw_only=True, frozen=True):
    """Only what the analyzer reads of the file; parts that other programs own are let through by name."""

    security: DetectionSettings = DetectionSettings()


_PARTS = (
    DetectionSettings, InjectionSettings, ModelSettings, NamedPattern, NamesSettings, PIISettings, PatternAction, SecretSettings, OutputSettings, BudgetSettings, ToolPolicy,
)  # fmt: skip
_KNOWN = sorted({name for part in _PARTS for name in part.__struct_fields__})
_SECTIONS = ("security", "storage", "alerting", "capture", "tenants", "routing", "server", "observability", "logging", "backends", "routes")
# Sections of `security` that another part of the program reads.
_ELSEWHERE = ("anomaly_detection", "rate_limiting")


def load_config(path: str | None) -> Config:
    """The settings of a file, or the defaults. Paths of rules and models count from the file's own folder."""
    if path is None:
        return Config()
    file = Path(path)
    value, _ = read_yaml(file)
    if value is None:
        return Config()
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: the file holds no settings", "it begins with `security:`")
    for section in value:
        if section not in _SECTIONS:
            raise ConfigError(f"{path}: unknown section `{shown(section)}`", _hint(str(section), list(_SECTIONS)))
    security = value.get("security") or {}
    if isinstance(security, dict):
        security = {name: item for name, item in security.items() if name not in _ELSEWHERE}
    try:
        settings = msgspec.convert(security, DetectionSettings)
    except msgspec.ValidationError as fault:
        raise _explained(path, str(fault)) from None
    return Config(security=_from_folder(settings, file.parent))


def _from_folder(settings: DetectionSettings, folder: Path) -> DetectionSettings:
    def full(name: str) -> str:
        return name if Path(name).is_absolute() else str(folder / name)

    injection = settings.prompt_injection
    chosen = injection.chosen_model
    model = msgspec.structs.replace(chosen, path=full(chosen.path)) if chosen.path else chosen
    return msgspec.structs.replace(
        settings,
        rules=tuple(map(full, settings.rules)),
        prompt_injection=msgspec.structs.replace(injection, model=model, ml_model=None),
    )


def _explained(path: str, message: str) -> ConfigError:
    place = re.search(r" - at `\$\.?([^`]*)`", message)
    where = "security" + (f".{place[1]}" if place else "")
    text = message.split(" - at ", maxsplit=1)[0]
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown is not None:
        return ConfigError(f"{path}: {where}: unknown key `{shown(unknown[1])}`", _hint(unknown[1], _KNOWN))
    return ConfigError(f"{path}: {where}: {text}")


def _hint(word: str, known: list[str]) -> str:
    if word in known:
        return "there is a key of this name, in another section: docs/detection.md shows where"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)
