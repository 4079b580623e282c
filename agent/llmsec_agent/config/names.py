"""Other names of keys: the original design's, and the variables of the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from llmsec_agent.config.schema import Config
from llmsec_agent.config.secret import Secret
from llmsec_analyzer.typed_files import Given, bare, keys, struct_type
from llmsec_analyzer.yaml_files import Where

FILE_VARIABLES: Final = ("LLMSEC_CONFIG", "LLMSEC_CONFIG_PATH")
DEBUG_VARIABLE: Final = "LLMSEC_DEBUG"

# The key as the design writes it, and ours. `*` is any name. In this order: a later one may lie in what an earlier one moved.
ALIASES: Final[Mapping[str, str]] = {
    "logging": "observability.logging",
    "observability.metrics.prometheus.enabled": "observability.metrics.enabled",
    "observability.metrics.prometheus.endpoint": "observability.metrics.path",
    "observability.metrics.prometheus.port": "observability.metrics.port",
    "observability.metrics.prometheus": "observability.metrics",
    "observability.tracing.jaeger.enabled": "observability.tracing.enabled",
    "observability.tracing.jaeger.agent_endpoint": "observability.tracing.endpoint",
    "observability.tracing.jaeger.service_name": "observability.tracing.service_name",
    "observability.tracing.jaeger": "observability.tracing",
    "security.prompt_injection.ml_model": "security.prompt_injection.model",
    "security.prompt_injection.confidence_threshold": "security.prompt_injection.model.confidence_threshold",
    "backends.*.retry_policy.backoff": "backends.*.retry_policy.backoff_strategy",
    "alerting.channels.pagerduty.service_key": "alerting.channels.pagerduty.routing_key",
    "alerting.channels.pagerduty.service_key_file": "alerting.channels.pagerduty.routing_key_file",
}
# A key is moved twice at most: to our section, and from KEY_file to KEY.
_MOVES: Final = 3


def secret_keys() -> list[Where]:
    """Every key that holds a secret; each may also be written as KEY_file, with a path."""
    found = []
    for where, field, _, _ in keys(struct_type(Config)):
        members = getattr(bare(field.type)[0], "types", (field.type,))
        if any(getattr(bare(member)[0], "cls", None) is Secret for member in members):
            found.append(where)
    return found


def variables() -> dict[str, Where]:
    """Variables of the environment, and the key that each sets."""
    return {facts["env"]: where for where, _, _, facts in keys(struct_type(Config)) if "env" in facts}


def from_environment(environment: Mapping[str, str]) -> dict[Where, Given]:
    """What the environment sets. An empty variable sets nothing: that is how templates leave one out."""
    given = {
        where: Given(environment[name], f"environment {name}", is_text=True)
        for name, where in variables().items()
        if environment.get(name, "").strip()
    }
    debug = environment.get(DEBUG_VARIABLE, "").strip()
    if debug:
        # A word that is neither yes nor no goes on as it is, and is refused with the name of the variable.
        level = {"true": "debug", "1": "debug", "yes": "debug", "on": "debug", "false": "", "0": "", "no": "", "off": ""}.get(
            debug.lower(), debug
        )
        if level:
            given["observability", "logging", "level"] = Given(level, f"environment {DEBUG_VARIABLE}", is_text=True)
    return given


class Renamed:
    """Moves what a tree has under other names to ours, in place. `spelled` gives a place back as it was written."""

    def __init__(self, tree: dict[Any, Any], twice: Callable[[Where, str, str], None]) -> None:
        """`twice` is told of a value that both names give: where it is, as it is written there, and the other name."""
        self._tree = tree
        self._twice = twice
        self._moved: dict[Where, Where] = {}
        for old, new in ALIASES.items():
            for written, ours in self._each(tuple(old.split(".")), tuple(new.split("."))):
                self._move(written, ours, lambda value: value)
        for where in secret_keys():
            if "*" not in where and 0 not in where:
                file = (*where[:-1], f"{where[-1]}_file")
                self._move(file, where, lambda path: f"file:{path}" if isinstance(path, str) else path)

    def spelled(self, where: Where) -> Where:
        """The place as the file has it."""
        for _ in range(_MOVES):
            moved = next((size for size in range(len(where), 0, -1) if where[:size] in self._moved), 0)
            if not moved:
                break
            where = (*self._moved[where[:moved]], *where[moved:])
        return where

    def _each(self, old: Where, new: Where) -> list[tuple[Where, Where]]:
        """The two for every name that stands in the place of `*`. A name may be `*` itself."""
        if "*" not in old:
            return [(old, new)]
        at = old.index("*")
        parent = _at(self._tree, old[:at])
        chosen = [name for name in parent if isinstance(name, str)] if isinstance(parent, dict) else []
        return [((*old[:at], name, *old[at + 1 :]), (*new[:at], name, *new[at + 1 :])) for name in chosen]

    def _move(self, old: Where, new: Where, change: Callable[[Any], Any]) -> None:
        parent = _at(self._tree, old[:-1])
        if not isinstance(parent, dict) or old[-1] not in parent:
            return
        if old[:-1] == new:  # a section within the section that takes its keys
            if isinstance(parent[old[-1]], dict):
                for name, item in parent.pop(old[-1]).items():
                    self._put((*new, name), item, (*old, name))
            return
        value = parent.pop(old[-1])
        if not parent and len(old) > 1 and old[:-1] != new[:-1]:
            self._drop_empty(old[:-1])
        if value is None:
            return
        self._put(new, change(value), old)

    def _put(self, new: Where, value: Any, old: Where) -> None:
        at = self._tree
        for step in new[:-1]:
            if at.get(step) is None:
                at[step] = {}
            below = at[step]
            if not isinstance(below, dict):
                return  # what stands there is refused by itself
            at = below
        there = at.get(new[-1])
        if isinstance(there, dict) and isinstance(value, dict):
            for name, item in value.items():
                self._put((*new, name), item, (*old, name))
            return
        if there is not None:
            self._twice(old, ".".join(map(str, old)), ".".join(map(str, new)))
            return
        at[new[-1]] = value
        self._moved[new] = old

    def _drop_empty(self, where: Where) -> None:
        """A mapping that held nothing but what was moved, such as `prometheus`."""
        parent = _at(self._tree, where[:-1])
        if isinstance(parent, dict):
            parent.pop(where[-1], None)


def _at(tree: Any, where: Where) -> Any:
    for step in where:
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tree
