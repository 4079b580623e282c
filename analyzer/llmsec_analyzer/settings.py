"""What detection is asked to do: the `security` part of the configuration, as typed settings with the design's names."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec

from llmsec_analyzer.rules.schema import Action
from llmsec_analyzer.typed_files import key
from llmsec_tap.model import Severity


class Platt(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A line through log-odds: what a classifier says, as a chance that can be believed."""

    slope: Annotated[float, key("of the line through log-odds", above=0, at_most=100)]
    intercept: Annotated[float, key("of that line", at_least=-100, at_most=100)]


class ModelSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`path`: an ONNX file, or the folder of a classifier; none: the one that ships. `confidence_threshold`: none: the one fixed in training, or a half."""

    enabled: Annotated[bool, key("judge prompt injection with the model; without it the patterns alarm by themselves")] = True
    path: Annotated[
        str | None,
        key(
            "an ONNX file of the same form (docs/model-card.md), or the folder of a classifier in the Hugging Face layout (docs/detection.md), "
            "from the configuration's folder; none: the one that ships"
        ),
    ] = None
    confidence_threshold: Annotated[
        float | None,
        key(
            "score from which a text counts as injection; none: fixed in training, 0.5 of a classifier",
            env="LLMSEC_INJECTION_THRESHOLD",
            at_least=0,
            at_most=1,
        ),
    ] = None

    positive_label: Annotated[str | None, key("of a classifier: the label that means an attack; none: told by its name", filled=True)] = (
        None
    )
    second_opinion: Annotated[bool, key("of a classifier: ask our own model, too; a text counts where one of the two says so")] = False
    platt: Annotated[Platt | None, key("of a classifier: its calibration, by `llmsec-analyze calibrate` with labels")] = None
    window_tokens: Annotated[int, key("of a classifier: tokens at a time, if it takes so many", at_least=16, at_most=8192)] = 512
    windows: Annotated[
        int, key("of a classifier: windows of one text at most, spread evenly; the rest is marked", at_least=1, at_most=4096)
    ] = 16
    batch: Annotated[int, key("of a classifier: windows at once", at_least=1, at_most=64)] = 4
    threads: Annotated[int, key("of a classifier: threads that it may take", at_least=1, at_most=64)] = 1
    timeout: Annotated[float, key("of a classifier: time for one text; the rest is marked", unit="duration", above=0, at_most=60)] = 2.0


class NamedPattern(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, key("`ignore_instructions` and `system_override` ship; any other name is a pattern of your own", filled=True)]
    regex: Annotated[str | None, key("RE2 syntax; may be left out of the two that ship", filled=True)] = None
    severity: Annotated[Severity, key("severity of its findings")] = "medium"


Profile = Literal["strict", "balanced", "permissive"]


class InjectionSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("look for prompt injection")] = True
    model: Annotated[ModelSettings, key("the classifier")] = ModelSettings()
    context: Annotated[bool, key("judge a text together with the system prompt it came under")] = True
    patterns: Annotated[tuple[NamedPattern, ...], key("patterns that alarm by themselves, beside the model")] = ()


class PatternAction(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    regex: Annotated[str | None, key("RE2 syntax; looked for beside the shipped rule of that name, if there is one", filled=True)] = None
    action: Annotated[Action, key("alert_and_redact masks every match in what is printed, stored and sent")] = "alert_only"
    severity: Annotated[Severity | None, key("none: the shipped rule's; medium for a kind of your own")] = None


class NamesSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Names of people need the extra `names` and a spaCy pipeline: the name of an installed one, or a folder."""

    enabled: Annotated[bool, key("look for names of people; needs the extra `names` and a spaCy pipeline")] = False
    model: Annotated[str, key("an installed spaCy pipeline, or a folder", filled=True)] = "en_core_web_sm"


class PIISettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("look for personal data", env="LLMSEC_PII_DETECTION")] = True
    patterns: Annotated[
        dict[str, PatternAction], key("by kind: `ssn`, `credit_card`, `email`, any kind of `rules list`, or one of your own with a regex")
    ] = {}
    names: Annotated[NamesSettings, key("names of people")] = NamesSettings()
    addresses: Annotated[bool, key("look for postal addresses, by rules")] = False


class SecretSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("look for credentials")] = True


class ToolPolicy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A call that matters: of tools named so, with an argument named so, whose value holds what the pattern says."""

    tool: Annotated[str, key("name of the tool; * and ? are wildcards", filled=True)]
    argument: Annotated[str, key("a name, or a path like `options.headers.*`; * is any", filled=True)] = "*"
    matches: Annotated[str | None, key("what its value holds, RE2 syntax; none: it need only be there", filled=True)] = None
    severity: Annotated[Severity | None, key("none: the rule's own")] = None


class OutputSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("judge answers and tool calls")] = True
    injection: Annotated[
        bool, key("judge answers of 100 characters and more for injections that they carry into the next tool or agent")
    ] = True
    injection_threshold: Annotated[
        float, key("score from which an answer counts as carrying one, beside a sign of it", at_least=0, at_most=1)
    ] = 0.9
    canaries: Annotated[tuple[Annotated[str, key(filled=True)], ...], key("words of your system prompts that no answer may hold")] = ()
    sensitive_tools: Annotated[
        tuple[str | ToolPolicy, ...], key("tools whose call is a finding: a name (* and ? are wildcards), or a mapping of the keys below")
    ] = ()


class RequestTimeSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is looked at while an answer is awaited. What does not fit is looked at when the exchange has ended, whole and without a limit."""

    enabled: Annotated[bool, key("in live captures, examine a request when its last byte is in")] = True
    pii_timeout: Annotated[
        float, key("time for the patterns (secrets, personal data, signs) of one request", unit="duration", above=0, at_most=60)
    ] = 0.05
    injection_timeout: Annotated[float, key("time for the model on one request", unit="duration", above=0, at_most=60)] = 0.1


class BudgetSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`share`: how much of the time that passes may go into scanning before it degrades, 1.0: one core. None: no budget."""

    share: Annotated[
        float | None, key("part of one core's time that scanning may take before it degrades; none: no limit", above=0, at_most=1)
    ] = None


class Sensitivity(msgspec.Struct, kw_only=True, frozen=True):
    """What one tenant's exchanges are judged by; None: as all are."""

    profile: Profile | None = None
    confidence_threshold: float | None = None


class Handling(NamedTuple):
    """What is different for one exchange. `redact`: all that is secret or personal is masked in it."""

    sensitivity: Sensitivity | None = None
    redact: bool = False


class AnomalySettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("look for deviations: unusual cost, rates, errors, latency, keys, clients")] = True
    cost_threshold_multiplier: Annotated[float, key("times the tenant's usual cost", above=0)] = 3.0
    request_rate_threshold: Annotated[int, key("requests a minute", at_least=1)] = 1000
    token_velocity_threshold: Annotated[int, key("tokens a minute", at_least=1)] = 50_000
    prices: Annotated[str | None, key("a file of prices that count before ours, from the configuration's folder", filled=True)] = None


class GlobalRate(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    requests_per_second: Annotated[int, key("over all callers", at_least=1)] = 1000
    burst_size: Annotated[int, key("requests at once", at_least=1)] = 2000


class TenantRate(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    default_rps: Annotated[int, key("requests a second of one tenant", at_least=1)] = 100
    default_burst: Annotated[int, key("requests at once of one tenant", at_least=1)] = 200


class RateSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Rates that are watched. A tap reports who went over; it never rejects."""

    everyone: Annotated[GlobalRate, key("all callers together")] = msgspec.field(default=GlobalRate(), name="global")
    per_tenant: Annotated[TenantRate, key("one tenant")] = TenantRate()


class DetectionSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: Annotated[bool, key("look for anything at all; false leaves `risk_score` null", env="LLMSEC_SECURITY_ENABLED")] = True
    profile: Annotated[Profile, key("how much is found, at how many false alarms (docs/detection.md has both by profile)")] = "balanced"
    prompt_injection: Annotated[InjectionSettings, key("prompt injection and jailbreaks")] = InjectionSettings()
    pii_detection: Annotated[PIISettings, key("personal data")] = PIISettings()
    secret_detection: Annotated[SecretSettings, key("credentials")] = SecretSettings()
    output: Annotated[OutputSettings, key("answers and tool calls")] = OutputSettings()
    anomaly_detection: Annotated[AnomalySettings, key("unusual cost and use (docs/deviations.md)")] = AnomalySettings()
    rate_limiting: Annotated[RateSettings, key("rates to report on; a tap never rejects")] = RateSettings()
    request_time: Annotated[RequestTimeSettings, key("findings on a request before its answer")] = RequestTimeSettings()
    budget: Annotated[BudgetSettings, key("how much scanning may cost")] = BudgetSettings()
    rules: Annotated[
        tuple[str, ...],
        key(
            "files and folders of rules of your own (docs/rules.md), from the configuration's folder; `package:NAME` for a pack that is installed"
        ),
    ] = ()
    disabled_rules: Annotated[tuple[str, ...], key("ids of rules that are left out (`llmsec-analyze rules list`)")] = ()
    suppressions: Annotated[
        tuple[str, ...], key("files of findings that count no longer (docs/detection.md), from the configuration's folder")
    ] = ()
    engine: Annotated[Literal["auto", "hyperscan", "portable"], key("what passes over texts; findings are the same")] = "auto"
    plugins: Annotated[bool, key("load detectors of other packages (docs/rules.md)")] = True

    @property
    def reads_files(self) -> bool:
        """Whether what is looked for stands in other files, too."""
        return bool(self.rules or self.suppressions or self.prompt_injection.model.path)

    @property
    def asks_redaction(self) -> bool:
        """Whether patterns here are to be masked; rules of one's own files may be, too."""
        return self.enabled and any(wanted.action == "alert_and_redact" for wanted in self.pii_detection.patterns.values())
