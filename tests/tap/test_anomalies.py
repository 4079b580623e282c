from __future__ import annotations

import re
from pathlib import Path

from llmsec_tap.anomalies import ANOMALIES

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "tap" / "llmsec_tap", ROOT / "analyzer" / "llmsec_analyzer")
_CALL = re.compile(r'(?:anomaly|_bad_head|anomalies\.append|on_anomaly|_anomaly)\(\s*"([a-z0-9_]+)"')


def test_every_name_is_documented_and_every_documented_name_can_happen() -> None:
    source = {
        path: path.read_text(encoding="utf-8") for package in PACKAGES for path in package.rglob("*.py") if path.name != "anomalies.py"
    }
    emitted = {name for text in source.values() for name in _CALL.findall(text)}
    assert emitted <= ANOMALIES.keys()
    assert [name for name in ANOMALIES if not any(f'"{name}"' in text for text in source.values())] == []
