"""Durations and sizes as people write them in configuration: a number and its unit, both required ("30s", "100ms", "16MiB", "50MB")."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZES: Final = {
    "B": 1, "KB": 1000, "KiB": 1 << 10, "MB": 1000**2, "MiB": 1 << 20, "GB": 1000**3, "GiB": 1 << 30, "TB": 1000**4, "TiB": 1 << 40,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,3})\s*")
_BY_CASE = {name.lower(): size for name, size in _SIZES.items()}


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError for anything but a number and one of ms, s, m, h, d."""
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in _DURATIONS:
        raise ValueError("not a duration")
    return float(found[1]) * _DURATIONS[found[2]]


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError for anything but a number and one of B, KB, MB, GB, TB (thousands), KiB, MiB, GiB, TiB (1024s)."""
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2].lower() not in _BY_CASE:
        raise ValueError("not a size")
    return round(Decimal(found[1]) * _BY_CASE[found[2].lower()])


def show_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as the same: 300.0 is 5m, 0.1 is 100ms."""
    for unit, factor in reversed(_DURATIONS.items()):
        count = seconds / factor
        if count >= 1 and math.isclose(count, round(count), rel_tol=1e-12):
            return f"{round(count)}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def show_size(size: int) -> str:
    """As `show_duration`, of bytes: 16777216 is 16MiB, 50000000 is 50MB."""
    for unit, factor in sorted(_SIZES.items(), key=lambda item: -item[1]):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
