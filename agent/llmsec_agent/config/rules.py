"""Whether the rules, patterns, suppressions and the model that a configuration names are there and right."""

from __future__ import annotations

from pathlib import Path

from llmsec_agent.config.load import Loaded
from llmsec_analyzer.judge.rule_set import rule_set
from llmsec_analyzer.judge.suppressions import Suppressions, load_suppressions


def check_rules(loaded: Loaded) -> list[str]:
    """Notes. Raises ConfigError for a pattern, rule or suppression that is wrong."""
    security = loaded.config.security
    rule_set(security)
    notes = Suppressions(load_suppressions(security.suppressions)).expired()
    path = security.prompt_injection.model.path
    if path is not None and security.prompt_injection.model.enabled and not Path(path).is_file():
        where = "security.prompt_injection.model.path"
        notes.append(f"{loaded.origins.get(where, loaded.file)}: {where}: {path} is not there: detection starts only where it is")
    return notes
