"""Hostile configuration and rule files: one clear error each, soon, within bounds, and without what they say."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_agent.config import load_config
from llmsec_analyzer.prove.form import check_form
from llmsec_analyzer.rules.load import load_file
from llmsec_analyzer.yaml_files import MAX_FILE_BYTES, read_yaml
from llmsec_tap.errors import ConfigError

_ALIASES = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
_MERGED = "a: &b0 {x: 1}\n" + "".join(f"c{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}\n" for i in range(1, 26))
HOSTILE = {
    "aliases": (_ALIASES + "rules: *a11\n", "aliases"),
    "merges": (_MERGED + "security: *b25\n", "aliases"),
    "itself": ("security: &a\n  x: *a\n", "inside itself"),
    "deep": ("security: " + "[" * 100_000, "not YAML|nested"),
    "deep maps": ("".join(" " * i + "a:\n" for i in range(300)), "not YAML|nested"),
    "large": ("#" * (MAX_FILE_BYTES + 1), "larger than 4 MiB"),
    "tags": ('security: !!python/object/apply:os.system ["true"]\n', "not YAML"),
    "a date that is none": ("security: 2026-99-99\n", "not YAML"),
    "a key": ("root:$6$hunter2hunter2:19000:0:99999:7:::\nx: 1\n: y: z", "."),
    "a mapping": ("'root:$6$hunter2hunter2': 1\n", "unknown"),
    "an alias that is none": ("a: *hunter2hunter2\n", "not YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("load", [load_config, lambda name: load_file(Path(name), check_form)], ids=["config", "rules"])
def test_it_is_one_clear_error_that_quotes_nothing(tmp_path, name, load):
    text, said = HOSTILE[name]
    file = tmp_path / "file.yaml"
    file.write_text(text)
    begun = time.process_time()
    with pytest.raises(ConfigError, match=said) as caught:
        load(str(file))
    assert time.process_time() - begun < 5
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path), "a\0b"):
        with pytest.raises(ConfigError, match="Failed to read config file"):
            load_config(name)


@given(st.binary(max_size=200) | st.text(alphabet="ab&*:[]{}-,?!|>'\"# \n<0", max_size=120).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_value_or_one_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    with contextlib.suppress(ConfigError):
        read_yaml(file)


def test_aliases_within_bounds_are_taken(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("security:\n  secret_detection: &on {enabled: true}\n  output: *on\n")
    assert load_config(str(file)).security.output.enabled


def test_a_key_in_the_wrong_section_is_not_suggested_to_itself(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("security:\n  secret_detection: {canaries: []}\n")
    with pytest.raises(ConfigError, match="unknown key `canaries`") as caught:
        load_config(str(file))
    assert "another section" in caught.value.hint
