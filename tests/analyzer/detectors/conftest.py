from __future__ import annotations

import hashlib

import pytest

from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.rules.load import load_builtin
from llmsec_analyzer.settings import DetectionSettings, InjectionSettings, ModelSettings


def fingerprint(text: str) -> str:
    return hashlib.sha256(b"tests" + text.encode("utf-8", "replace")).hexdigest()[:16]


WITHOUT_MODEL = DetectionSettings(prompt_injection=InjectionSettings(model=ModelSettings(enabled=False)), plugins=False)


@pytest.fixture(scope="session")
def builtin():
    return load_builtin()


@pytest.fixture(scope="session")
def scanner() -> Scanner:
    """With the model that ships."""
    return Scanner(DetectionSettings(plugins=False), fingerprint)


@pytest.fixture(scope="session")
def rules_only() -> Scanner:
    return Scanner(WITHOUT_MODEL, fingerprint)
