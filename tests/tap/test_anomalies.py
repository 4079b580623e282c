from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from llmsec_tap.anomalies import ANOMALIES, UNREAD, AnomalyName

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ROOT / "tap" / "llmsec_tap",
    ROOT / "analyzer" / "llmsec_analyzer",
    ROOT / "agent" / "llmsec_agent",
    ROOT / "sdk" / "llmsec_trace",
)


def test_each_name_has_a_meaning_in_the_order_of_the_type() -> None:
    """The type checker proves the names that are reported; that type and table agree is for this test."""
    assert list(ANOMALIES) == list(get_args(AnomalyName))
    assert all(text.endswith(".") for text in ANOMALIES.values())
    assert ANOMALIES.keys() >= UNREAD


def test_every_name_can_happen() -> None:
    source = [
        path.read_text(encoding="utf-8") for package in PACKAGES for path in sorted(package.rglob("*.py")) if path.name != "anomalies.py"
    ]
    assert [name for name in ANOMALIES if not any(f'"{name}"' in text for text in source)] == []


def test_detection_reports_names_of_the_table() -> None:
    """Its marks cross to another process as plain strings, which no type checker sees."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGES[1].rglob("*.py")))
    marks = re.findall(r'(?:marks\.(?:append|add)|anomaly|anomalies\.append|AnomalyCount)\((?:name=)?"([a-z0-9_]+)"', source)
    assert marks
    assert set(marks) <= ANOMALIES.keys()
