"""Calls of tools that the policy names, by the tool alone or by what its arguments hold."""

from __future__ import annotations

import json

import pytest

from llmsec_analyzer.judge.tool_policy import ToolPolicies
from llmsec_analyzer.settings import ToolPolicy
from llmsec_tap.errors import ConfigError

CALL = {"path": "/etc/shadow", "options": {"follow": True, "headers": {"X-Key": "v"}}, "lines": [1, "rm -rf é"]}


def named(*entries, tool="read_file", arguments: object = CALL) -> list[str]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return [text[hit.start : hit.end] for hit in ToolPolicies(entries).hits(tool, text)]


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        (ToolPolicy(tool="read_*", argument="path", matches="^/etc/"), ["/etc/shadow"]),
        (ToolPolicy(tool="read_file", matches="shadow"), ["/etc/shadow"]),
        (ToolPolicy(tool="*", argument="options.headers.*"), ["v"]),
        (ToolPolicy(tool="*", argument="X-Key"), ["v"]),
        (ToolPolicy(tool="*", argument="follow", matches="true"), ["true"]),
        (ToolPolicy(tool="*", argument="lines.*", matches="rm -rf"), ["rm -rf é"]),
        (ToolPolicy(tool="read_file", argument="path", matches="^/home/"), []),
        (ToolPolicy(tool="read_file", argument="target"), []),
        (ToolPolicy(tool="write_file", argument="path"), []),
    ],
)
def test_an_entry_means_a_tool_an_argument_and_a_form(entry, shown):
    assert named(entry) == shown


def test_a_name_alone_means_every_call():
    assert named("read_*", arguments='{"a":') == ['{"a":']
    assert named("delete_*") == []


@pytest.mark.parametrize(
    "arguments", ['{"path": "/etc/pass', "/etc/passwd", '["/etc/passwd"]', '"/etc/passwd"', "[" * 5000 + "/etc/passwd"]
)
def test_arguments_that_are_no_object_are_looked_at_as_text(arguments):
    assert named(ToolPolicy(tool="read_file", argument="path", matches="/etc/pass"), arguments=arguments) == [arguments]


def test_a_pattern_alone_in_text_that_is_no_json_needs_to_match():
    assert named(ToolPolicy(tool="read_file", argument="path", matches="^nothing"), arguments="{") == []


def test_deep_and_broad_arguments_take_bounded_time():
    deep: object = "/etc/shadow"
    for _ in range(80):
        deep = {"a": deep}
    broad = {str(number): "x" for number in range(20_000)}
    assert len(named(ToolPolicy(tool="*", matches="shadow"), arguments=deep)) == 1
    assert len(named(ToolPolicy(tool="*", argument="19999", matches="x"), arguments=broad)) == 1


def test_the_severity_of_an_entry_is_that_of_its_finding():
    (hit,) = ToolPolicies((ToolPolicy(tool="*", argument="path", severity="critical"),)).hits("t", '{"path": "\\ud800"}')
    assert hit.severity == "critical"
    assert "path" in hit.note


def test_a_pattern_that_is_none_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"sensitive_tools.*'\('"):
        ToolPolicies((ToolPolicy(tool="*", matches="("),))
