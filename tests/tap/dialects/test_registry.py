from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmsec_tap.dialects import registry
from llmsec_tap.dialects.base import Dialect
from llmsec_tap.dialects.registry import DIALECTS


@pytest.mark.parametrize("dialect", DIALECTS, ids=[type(dialect).__name__ for dialect in DIALECTS])
def test_each_dialect_says_itself_what_it_is_and_who_serves_it(dialect: Dialect) -> None:
    """Nothing is inherited: a dialect that reads another one's answers would pass for that one's provider."""
    for name in ("api", "default_provider"):
        assert vars(type(dialect)).get(name), name
    assert dialect.operation


def test_no_two_dialects_of_one_name_differ_in_who_serves_them() -> None:
    assert len({(dialect.api, dialect.default_provider) for dialect in DIALECTS}) == len({dialect.api for dialect in DIALECTS})


def test_claims_are_named_on_one_scale() -> None:
    """A bare number would be a rung that nobody compared with the others."""
    bare = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(registry.__file__).parent.glob("*.py"))
        for function in re.findall(r"    def (?:claims|recognises)\(.*?(?=\n    def |\n\S)", path.read_text(), re.DOTALL)
        for line in function.splitlines()
        if re.search(r"\b(?:return|else) [1-9]", line)
    ]
    assert bare == []
