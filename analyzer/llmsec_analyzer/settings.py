"""What detection is asked to do: the `security` part of the configuration, as typed settings with the design's names."""

from __future__ import annotations

import msgspec

from llmsec_analyzer.rules.schema import Action
from llmsec_tap.model import Severity


class ModelSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`path`: an ONNX file; none: the one that ships. `confidence_threshold`: none: the one fixed in training."""

    enabled: bool = True
    path: str | None = None
    confidence_threshold: float | None = None


class NamedPattern(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: str
    regex: str
    severity: Severity = "medium"


class InjectionSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    model: ModelSettings = ModelSettings()
    ml_model: ModelSettings | None = None  # the design's own name for the same
    patterns: tuple[NamedPattern, ...] = ()

    @property
    def chosen_model(self) -> ModelSettings:
        return self.ml_model or self.model


class PatternAction(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    regex: str | None = None
    action: Action = "alert_only"
    severity: Severity | None = None


class NamesSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Names of people need the extra `names` and a spaCy pipeline: the name of an installed one, or a folder."""

    enabled: bool = False
    model: str = "en_core_web_sm"


class PIISettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    patterns: dict[str, PatternAction] = {}
    names: NamesSettings = NamesSettings()
    addresses: bool = False  # postal addresses, by rules


class SecretSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True


class ToolPolicy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A call that matters: of tools named so, with an argument named so, whose value holds what the pattern says."""

    tool: str  # * and ? are wildcards
    argument: str = "*"  # a name, or a path like `options.headers.*`; * is any
    matches: str | None = None  # RE2 syntax; none: the argument need only be there
    severity: Severity | None = None  # none: the rule's own


class OutputSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    canaries: tuple[str, ...] = ()
    sensitive_tools: tuple[str | ToolPolicy, ...] = ()  # a name alone (* and ? are wildcards), or a name and what its arguments hold


class BudgetSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`share`: how much of the time that passes may go into scanning before it degrades, 1.0: one core. None: no budget."""

    share: float | None = None


class DetectionSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    prompt_injection: InjectionSettings = InjectionSettings()
    pii_detection: PIISettings = PIISettings()
    secret_detection: SecretSettings = SecretSettings()
    output: OutputSettings = OutputSettings()
    budget: BudgetSettings = BudgetSettings()
    rules: tuple[str, ...] = ()  # files and folders of one's own rules
    disabled_rules: tuple[str, ...] = ()
    engine: str = "auto"
    plugins: bool = True
