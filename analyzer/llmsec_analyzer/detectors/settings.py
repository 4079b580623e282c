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


class PIISettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    patterns: dict[str, PatternAction] = {}


class SecretSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True


class OutputSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    canaries: tuple[str, ...] = ()
    sensitive_tools: tuple[str, ...] = ()  # names; * and ? are wildcards


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
