"""Where the SQL of the two engines differs, for statements of our own. Values stand as ? in both."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Dialect:
    """Templates that `str.format` fills; `pattern` turns a text with * and ? into the value that `matches` takes."""

    matches: str
    pattern: Callable[[str], str]
    starts_with: str
    time_text: str
    whole: str
    left: str
    any_anomaly: str
    has_rule: str  # a finding of it
    among: str
    contains: str  # a text in another, in either case
    length: str
    quantile: str
    quotient: str  # of whole numbers


def _glob(text: str) -> str:
    """The square brackets of GLOB are not offered: some model names contain them."""
    return re.sub(r"[\[\]]", lambda found: f"[{found[0]}]", text)


def _like(text: str) -> str:
    return re.sub(r"[%_\\]", r"\\\g<0>", text).replace("*", "%").replace("?", "_")


DUCKDB: Final = Dialect(
    matches="{} GLOB ?",
    pattern=_glob,
    starts_with="starts_with({}, ?)",
    time_text="strftime({}, '%Y-%m-%d %H:%M:%S')",
    whole="round({})::BIGINT",
    left="left({}, {})",
    any_anomaly="list_has_any(list_transform(anomalies, lambda a: a.name), ?)",
    has_rule="list_contains(list_transform(findings, lambda f: f.rule_id), ?)",
    among="list_contains(?, {})",
    contains="contains(lower({}), lower(?))",
    length="len({})",
    quantile="quantile_cont({}, {})",
    quotient="{} // {}",
)
CLICKHOUSE: Final = Dialect(
    matches="{} LIKE ?",
    pattern=_like,
    starts_with="startsWith({}, ?)",
    time_text="formatDateTime({}, '%Y-%m-%d %H:%i:%S', 'UTC')",
    whole="CAST(round({}) AS Nullable(Int64))",
    left="leftUTF8({}, {})",
    any_anomaly="hasAny(arrayMap(a -> a.name, anomalies), ?)",
    has_rule="has(arrayMap(f -> f.rule_id, findings), ?)",
    among="has(?, {})",
    contains="positionCaseInsensitiveUTF8({}, ?) > 0",
    length="length({})",
    quantile="quantile({1})({0})",
    quotient="intDiv({}, {})",
)
