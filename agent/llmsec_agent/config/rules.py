"""Whether the rules, patterns, suppressions and the model that a configuration names are there and right."""

from __future__ import annotations

from pathlib import Path

from llmsec_agent.config.load import Loaded
from llmsec_analyzer.injection.classifier import read_folder
from llmsec_analyzer.judge.rule_set import rule_set
from llmsec_analyzer.judge.suppressions import Suppressions, load_suppressions
from llmsec_analyzer.settings import ModelSettings

_OF_CLASSIFIERS = ("positive_label", "platt", "window_tokens", "windows", "batch", "threads", "timeout")


def check_rules(loaded: Loaded) -> list[str]:
    """Notes. Raises ConfigError for a pattern, rule or suppression that is wrong."""
    security = loaded.config.security
    rule_set(security)
    notes = Suppressions(load_suppressions(security.suppressions)).expired()
    model = security.prompt_injection.model
    path = model.path
    if path is not None and model.enabled and Path(path).is_dir():
        read_folder(Path(path), model)
    elif model.enabled and (unused := [name for name in _OF_CLASSIFIERS if getattr(model, name) != getattr(ModelSettings(), name)]):
        where = f"security.prompt_injection.model.{unused[0]}"
        notes.append(f"{loaded.origins.get(where, loaded.file)}: {where}: does nothing without the folder of a classifier in `path`")
    if path is not None and model.enabled and not Path(path).exists():
        where = "security.prompt_injection.model.path"
        notes.append(f"{loaded.origins.get(where, loaded.file)}: {where}: {path} is not there: detection starts only where it is")
    return notes
