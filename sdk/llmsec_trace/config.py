"""What is recorded, and where it goes. The same checks hold in code, in the environment and in a file: all faults are told at once.

Names, defaults and variables are those of the original design; docs/sdk.md lists them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from llmsec_tap.errors import ConfigError

if TYPE_CHECKING:
    from llmsec_tap.model import Finding
    from llmsec_trace.destinations.base import Destination
    from llmsec_trace.trace import TraceContext

_TRUE: Final = frozenset(("true", "1", "yes", "on"))
_FALSE: Final = frozenset(("false", "0", "no", "off"))
_ACTIONS: Final = ("block", "alert")
SEVERITIES: Final = ("info", "low", "medium", "high", "critical")
_MAX_SHOWN: Final = 80


def _key(
    default: Any, kind: str, env: str = "", at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Any:
    """A field: how its value must be, and the variable that sets it."""
    facts = {"kind": kind, "env": env, "at_least": at_least, "at_most": at_most, "above": above}
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class TracingConfig:
    """The collector of OpenTelemetry that takes spans, and how records wait for it or for any other destination.

    batch_size, flush_interval_seconds   records go on when there are so many of them, or the oldest has waited so long
    max_queue_size                       records that wait for one destination; beyond it new ones are dropped and counted
    content                              texts are sent with the spans
    metrics                              metrics are sent, too, to metrics_endpoint_url
    """

    endpoint_url: str = _key("http://localhost:4318/v1/traces", "url", "LLMSEC_TRACING_ENDPOINT")
    batch_size: int = _key(100, "count", "LLMSEC_BATCH_SIZE", at_least=1, at_most=100_000)
    flush_interval_seconds: float = _key(5, "number", "LLMSEC_FLUSH_INTERVAL", above=0, at_most=86_400)
    max_queue_size: int = _key(10_000, "count", at_least=1, at_most=10_000_000)
    headers: Mapping[str, str] = field(default_factory=dict, metadata={"kind": "headers"}, repr=False)
    timeout_seconds: float = _key(30, "number", above=0, at_most=3_600)
    content: bool = _key(default=False, kind="flag")
    metrics: bool = _key(default=True, kind="flag")
    metrics_endpoint_url: str | None = _key(None, "url or none", "LLMSEC_METRICS_ENDPOINT")

    def __post_init__(self) -> None:
        _check(self)

    @property
    def metrics_url(self) -> str | None:
        """Where metrics go; None: nowhere. Without an address of their own it is that of the spans, where OTLP's own path says which it is."""
        if not self.metrics or self.metrics_endpoint_url is not None:
            return self.metrics_endpoint_url if self.metrics else None
        parts = urlsplit(self.endpoint_url)
        base = parts.path.removesuffix("/v1/traces")
        return urlunsplit(parts._replace(path=f"{base}/v1/metrics")) if base != parts.path else None


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """What detection looks for. `policy_class` is a SecurityPolicy of the application's own, `custom_rules` are patterns of its own (RE2).

    block_on     violations of the policy that are so severe or more keep a request from leaving; none: no violation does
    on_finding   called with each finding and the trace of its call, on a thread of ours
    """

    enabled: bool = _key(default=True, kind="flag", env="LLMSEC_SECURITY_ENABLED")
    prompt_injection_threshold: float = _key(0.8, "number", "LLMSEC_INJECTION_THRESHOLD", at_least=0, at_most=1)
    pii_detection_enabled: bool = _key(default=True, kind="flag", env="LLMSEC_PII_DETECTION")
    real_time_analysis: bool = _key(default=True, kind="flag")
    analysis_timeout_seconds: float = _key(1, "number", above=0, at_most=3_600)
    policy_class: type | None = field(default=None, metadata={"kind": "class"})
    custom_rules: Sequence[Mapping[str, str]] = _key((), "rules")
    block_on: str | None = _key(None, "severity")
    on_finding: Callable[[Finding, TraceContext], None] | None = field(default=None, metadata={"kind": "function"})

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class InstrumentationConfig:
    """How one application is recorded.

    store         a folder of records that `llmsec-analyze` reads
    agent         the Unix socket of an agent on this host (`sdk.socket` of its configuration)
    destinations  where records go, too (objects of destinations/, or of the application's own)

    Without any of these they go to the collector that `tracing` names.
    """

    tenant_id: str | None = _key(None, "name or none", "LLMSEC_TENANT_ID")
    service_name: str = _key("llm-application", "name", "LLMSEC_SERVICE_NAME")
    tracing: TracingConfig = field(default_factory=TracingConfig, metadata={"kind": "section"})
    security: SecurityConfig = field(default_factory=SecurityConfig, metadata={"kind": "section"})
    sampling_rate: float = _key(1.0, "number", "LLMSEC_SAMPLING_RATE", at_least=0, at_most=1)
    debug: bool = _key(default=False, kind="flag", env="LLMSEC_DEBUG")
    store: str | None = _key(None, "name or none", "LLMSEC_STORE")
    agent: str | None = _key(None, "name or none", "LLMSEC_AGENT_SOCKET")
    destinations: Sequence[Destination] = _key((), "destinations")

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> InstrumentationConfig:
        """Raises ConfigError that names each variable that is wrong. An empty variable counts as none."""
        environment = os.environ if environment is None else environment
        problems: list[str] = []
        made = _from_env(cls, environment, problems)
        if problems:
            raise _error("the environment", problems)
        return cls(**made)

    @classmethod
    def from_file(cls, config_path: str | os.PathLike[str]) -> InstrumentationConfig:
        """YAML, or JSON, which is YAML. Raises ConfigError with all that is wrong, each with its line."""
        from llmsec_analyzer.yaml_files import read_yaml, yaml_lines  # noqa: PLC0415 - most applications have no file

        path = Path(config_path)
        tree, node = read_yaml(path)
        lines = yaml_lines(node)
        problems: list[str] = []

        def problem(where: tuple[str, ...], text: str) -> None:
            problems.append(f"line {lines(where) or 1}: {'.'.join((*where, ''))[:-1] or 'the file'}: {text}")

        made = _from_tree(cls, {} if tree is None else tree, (), problem)
        if problems:
            raise _error(str(path), problems)
        assert isinstance(made, InstrumentationConfig)
        return made


_SECTIONS: Final[dict[str, type]] = {"tracing": TracingConfig, "security": SecurityConfig}
# What only code can give.
_OBJECTS: Final = frozenset(("class", "destinations", "function"))


def _error(where: str, problems: list[str]) -> ConfigError:
    return ConfigError(f"{where}: {'; '.join(problems)}", "docs/sdk.md lists every key.")


def _check(config: Any) -> None:
    problems = [f"{name} {wrong}" for name, wrong in _wrong(config)]
    if problems:
        raise _error(type(config).__name__, problems)


def _wrong(config: Any) -> Iterator[tuple[str, str]]:
    for known in dataclasses.fields(config):
        wrong = _fault(getattr(config, known.name), known.metadata, known.name)
        if wrong:
            yield known.name, wrong


def _fault(value: Any, facts: Mapping[str, Any], name: str) -> str:
    """What is wrong with a value; empty: nothing. It is quoted where it is a number: others may be secrets."""
    kind = facts["kind"]
    if kind == "section":
        wanted = _SECTIONS[name]
        return "" if isinstance(value, wanted) else f"must be a {wanted.__name__}, not {type(value).__name__}"
    if kind == "flag":
        return "" if isinstance(value, bool) else f"must be true or false, not {type(value).__name__}"
    if kind in ("number", "count"):
        return _number_fault(value, facts, is_count=kind == "count")
    if kind in _GIVEN:
        return _GIVEN[kind](value)
    if value is None and kind.endswith(" or none"):
        return ""
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not value.strip() or len(value) > 4096:
        return "must not be empty" if not value.strip() else "is longer than 4,096 characters"
    return _url_fault(value) if kind.startswith("url") else ""


def _number_fault(value: Any, facts: Mapping[str, Any], *, is_count: bool) -> str:
    if isinstance(value, bool) or not isinstance(value, int if is_count else int | float):
        return f"must be a {'whole ' if is_count else ''}number, not {type(value).__name__}"
    low, above, high = facts["at_least"], facts["above"], facts["at_most"]
    if (low is not None and value < low) or (above is not None and value <= above) or value > high or not math.isfinite(value):
        return f"must be {f'above {above}' if low is None else f'at least {low}'} and at most {high:,}, not {str(value)[:24]}"
    return ""


def _url_fault(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_whole = False
    return "" if is_whole else "must be an address such as http://localhost:4318/v1/traces"


def _headers_fault(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"must be a mapping of names to text, not {type(value).__name__}"
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}", name):
            return "has a name that no header can have"
        if not isinstance(text, str) or not re.fullmatch(r"[\t\x20-\x7e]{0,8192}", text):
            return f"has a value of {name} that no header can have: it must be plain text"
    return ""


def _rules_fault(value: Any) -> str:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return f"must be a list of rules, not {type(value).__name__}"
    for number, rule in enumerate(value):
        if not isinstance(rule, Mapping) or set(rule) != {"pattern", "type", "action"}:
            return f"[{number}] must have exactly the keys pattern, type and action"
        if not all(isinstance(text, str) and text for text in rule.values()):
            return f"[{number}] must hold text that is not empty"
        if rule["action"] not in _ACTIONS:
            return f"[{number}].action must be one of {', '.join(_ACTIONS)}"
        wrong = _pattern_fault(rule["pattern"])
        if wrong:
            return f"[{number}].pattern {wrong}"
    return ""


def _pattern_fault(pattern: str) -> str:
    """RE2 takes time that grows with the text alone; what it cannot do (look-around, back references) is refused."""
    import re2  # type: ignore[import-untyped]  # noqa: PLC0415 - most applications have no rules

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError):
        return "is no regular expression of RE2's syntax"
    return ""


def _destinations_fault(value: Any) -> str:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return f"must be a list of destinations, not {type(value).__name__}"
    for number, destination in enumerate(value):
        if not all(callable(getattr(destination, name, None)) for name in ("send", "close")):
            return f"[{number}] must have the methods send and close, which {type(destination).__name__} has not"
    return ""


def _class_fault(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, type):
        return f"must be a class, not {type(value).__name__}"
    return "" if callable(getattr(value, "analyze_request", None)) else "must be a subclass of SecurityPolicy"


def _function_fault(value: Any) -> str:
    return "" if value is None or callable(value) else f"must be a function, not {type(value).__name__}"


def _severity_fault(value: Any) -> str:
    return "" if value is None or value in SEVERITIES else f"must be one of {', '.join(SEVERITIES)}"


_GIVEN: Final[dict[str, Callable[[Any], str]]] = {
    "class": _class_fault,
    "function": _function_fault,
    "severity": _severity_fault,
    "rules": _rules_fault,
    "destinations": _destinations_fault,
    "headers": _headers_fault,
}


# --- the environment, and files ---------------------------------------------------------------------------------------------


def _from_env(kind: Any, environment: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for known in dataclasses.fields(kind):
        facts = known.metadata
        if facts["kind"] == "section":
            inner = _from_env(_SECTIONS[known.name], environment, problems)
            if not problems:
                made[known.name] = _SECTIONS[known.name](**inner)
            continue
        text = environment.get(facts.get("env") or "", "")
        if not text.strip():
            continue
        value = _of_text(text, facts["kind"])
        wrong = _fault(value, facts, known.name)
        if wrong:
            problems.append(f"{facts['env']} {wrong.removesuffix(', not str')}")
        else:
            made[known.name] = value
    return made


def _of_text(text: str, kind: str) -> Any:
    """The value that a text stands for; the text itself where it stands for none."""
    word = text.strip()
    if kind == "flag":
        return True if word.lower() in _TRUE else False if word.lower() in _FALSE else text
    if kind in ("number", "count"):
        try:
            return int(word)
        except ValueError:
            pass
        try:
            return float(word) if kind == "number" else text
        except ValueError:
            return text
    return word


def _from_tree(kind: Any, tree: Any, where: tuple[str, ...], problem: Any) -> Any:
    """An instance, or None where something in it is wrong."""
    if not isinstance(tree, Mapping):
        problem(where, f"must be a mapping of keys to values, not {type(tree).__name__}")
        return None
    known = {item.name: item for item in dataclasses.fields(kind) if item.metadata["kind"] not in _OBJECTS}
    made: dict[str, Any] = {}
    is_whole = True
    for name, value in tree.items():
        if name not in known:
            near = difflib.get_close_matches(str(name)[:_MAX_SHOWN], known, n=1)
            shown = str(name) if re.fullmatch(r"[A-Za-z][\w.-]{0,40}", str(name)) else "…"
            problem(where, f"unknown key `{shown}`" + (f" (did you mean {near[0]}?)" if near else f" (one of: {', '.join(known)})"))
            is_whole = False
        elif value is not None:  # a key without a value means its default
            facts = known[name].metadata
            if facts["kind"] == "section":
                value = _from_tree(_SECTIONS[name], value, (*where, name), problem)
                is_whole = is_whole and value is not None
            else:
                wrong = _fault(value, facts, name)
                if wrong:
                    problem((*where, name), wrong)
                    is_whole = False
            made[name] = value
    return kind(**made) if is_whole else None
