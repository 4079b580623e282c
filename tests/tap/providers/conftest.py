"""Makes the corpus runner importable by path: test folders are not packages here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "provider_corpus" not in sys.modules:
    spec = importlib.util.spec_from_file_location("provider_corpus", Path(__file__).with_name("corpus.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["provider_corpus"] = module
    spec.loader.exec_module(module)
