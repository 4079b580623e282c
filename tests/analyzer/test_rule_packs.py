"""Rules of packages and of other scanners, and what a change of rules does to what is found in a store."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsec_agent.config import load_config
from llmsec_agent.import_rules import from_gitleaks, from_regexes, write_rules
from llmsec_analyzer.judge.rule_set import literals
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.prove.form import check_form
from llmsec_analyzer.rules.load import RuleError, load_paths
from llmsec_analyzer.settings import DetectionSettings, InjectionSettings
from llmsec_tap.errors import ConfigError
from llmsec_tap.model import Exchange, Message, Part, Request, Response
from support.exchanges import full_exchange

RULE = """rules:
  - id: {id}
    name: ACME token
    description: 'An ACME token: whoever holds it can deploy.'
    category: secret
    type: acme
    severity: {severity}
    keywords: [acme_]
    pattern: 'acme_[a-z0-9]{{8}}'
"""

# --- packages -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is imported from: `acme_rules`, whose code must not run, and an entry point `acme` for a folder in it."""
    pack = tmp_path / "lib" / "acme_rules"
    (pack / "more").mkdir(parents=True)
    (pack / "__init__.py").write_text("raise SystemExit('imported')")
    (pack / "a.yaml").write_text(RULE.format(id="acme.a", severity="high"))
    (pack / "more" / "b.yml").write_text(RULE.format(id="acme.b", severity="high"))
    (pack / "empty").mkdir()
    info = tmp_path / "lib" / "acme_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: acme_rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llmsec_analyzer.rules]\nacme = acme_rules:more\nempty = acme_rules:empty\ngone = acme_rules:gone\nout = acme_rules:../..\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    return tmp_path / "lib"


def test_a_package_is_a_pack_and_its_code_does_not_run(packages: Path) -> None:
    assert [rule.id for rule in load_paths(["package:acme_rules", "package:acme"], check_form)] == ["acme.a", "acme.b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:nothing_there", "no such package is installed"),
        ("package:os", "no such package is installed"),
        ("package:../x", "no name of a package"),
        ("package:", "no name of a package"),
        ("package:empty", "has no rules"),
        ("package:gone", "has no folder of rules"),
        ("package:out", "no name of a package"),
    ],
)
def test_a_package_that_is_none(packages: Path, name: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        load_paths([name], check_form)


def test_a_configuration_names_a_package(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("security: {rules: ['package:acme_rules', own.yaml]}")
    assert load_config(str(tmp_path / "c.yaml")).security.rules == ("package:acme_rules", str(tmp_path / "own.yaml"))


# --- gitleaks -----------------------------------------------------------------------------------------------------------------

GITLEAKS = r"""
title = "a configuration"
[extend]
useDefault = true
[allowlist]
paths = ['''\.png$''']
regexes = ['''^x+$''']
stopwords = ["sample"]
[[rules]]
id = "acme-token"
description = "An ACME token, with which one may deploy to production."
regex = '''(?i)\b(?:acme)[\w.-]{0,20}[=: "']{1,5}([a-z0-9]{16,20})\b'''
entropy = 3.0
keywords = ["acme"]
[[rules.allowlists]]
regexTarget = "line"
regexes = ['''^#''']
[[rules.allowlists]]
condition = "AND"
regexes = ['''a''']
paths = ['''b''']
[[rules]]
id = "second-group"
description = "short"
regex = '''(zeta)_(?:k|[(])_(?P<key>[0-9a-f]{8})'''
secretGroup = 2
keywords = ["zeta"]
path = '''\.tf$'''
[[rules]]
id = "mid-flag"
description = "A token whose prefix has its own case, and nothing else has."
regex = '''\bMID\.(?i)[a-z0-9]{8}\z'''
[[rules]]
id = "pkcs12-file"
path = '''\.p12$'''
[[rules]]
id = "any-hex"
regex = '''[0-9a-f]{32}'''
keywords = ["hex"]
[[rules]]
id = "look-around"
regex = '''(?<!a)key_[0-9]{8}'''
[[rules]]
id = "no-such-group"
regex = '''grp_([0-9]{8})'''
secretGroup = 3
"""


def found(rules: list[dict[str, Any]], tmp_path: Path, text: str) -> dict[str, str]:
    write_rules(tmp_path / "out.yaml", rules, "x")
    settings = DetectionSettings(plugins=False, prompt_injection=InjectionSettings(enabled=False), rules=(str(tmp_path / "out.yaml"),))
    scanner = Scanner(settings, lambda value: value)
    return {
        finding.rule_id: text[finding.location.start : finding.location.end]
        for finding in scanner.scan(text).findings
        if finding.rule_id.startswith(("gitleaks", "imported"))
    }


def test_gitleaks_rules_find_what_they_found(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(GITLEAKS)
    made = from_gitleaks(tmp_path / "g.toml")
    assert [rule["id"] for rule in made.rules] == ["gitleaks.acme_token", "gitleaks.second_group", "gitleaks.mid_flag"]
    text = 'ACME_KEY = "q7w8e9r2t3y4u5i6" zeta_k_0a1b2c3d and MID.ab12cd34'
    assert found(made.rules, tmp_path, text) == {
        "gitleaks.acme_token": "q7w8e9r2t3y4u5i6",
        "gitleaks.second_group": "0a1b2c3d",
        "gitleaks.mid_flag": "MID.ab12cd34",
    }


@pytest.mark.parametrize("value", ["aaaaaaaaaaaaaaaaaaaa", "xxxxxxxxxxxxxxxx", "sample8e9r2t3y4u5", "q7w8e9"])
def test_gitleaks_rules_leave_out_what_they_left_out(tmp_path: Path, value: str) -> None:
    (tmp_path / "g.toml").write_text(GITLEAKS)
    assert found(from_gitleaks(tmp_path / "g.toml").rules, tmp_path, f"acme: {value}") == {}


def test_what_cannot_be_told_is_named_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(GITLEAKS)
    assert from_gitleaks(tmp_path / "g.toml").notes == [
        "extend: rules of other files are not read; import those files, too",
        "allowlist of all rules: paths and commits of its allowlist are left out: a tap sees no files",
        "acme-token: an allowlist over whole lines is left out: more is found",
        "acme-token: an allowlist that joins conditions, or is of some rules, is left out: more is found",
        "second-group: its path is left out, as a tap sees no files: it is looked for in all texts",
        "pkcs12-file: has no regex (a rule of paths): a tap sees no files",
        "any-hex: left out: no word stands in every match, so nothing would start its pattern",
        "look-around: left out: its pattern is none of RE2 (look-around, back-references, or a fault)",
        "no-such-group: left out: its secretGroup 3 is not there",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "g.toml:1: not TOML"),
        ("title = 'x'", r"has no \[\[rules\]\]"),
        ("rules = 3", r"has no \[\[rules\]\]"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_file_that_is_none_of_gitleaks(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        from_gitleaks(tmp_path / "g.toml")


@pytest.mark.parametrize(
    "text",
    [
        'rules=[{id=3, regex="abcd", keywords="x", allowlist=5, entropy=true}]',
        'rules=[{id="x", regex="abcd(", keywords=[1], description=7}]',
        'rules=[{id="x", regex="abcd", secretGroup="a", allowlist={regexes="x", stopwords=[1,""], paths=3, condition=5}}]',
        'rules=[{id="x", regex="abcd[](]ef(g)", entropy=nan, allowlists=[1, {regexes=["("]}]}]',
        'rules=[{id="x", regex="' + "(" * 3000 + "a" + ")" * 3000 + '"}]',
        'rules=[{id="x", regex="(abcd){1000}"}, {id="x", regex="abcd[^](]ef(g)"}]',
        "rules=[{id='x', regex='abcd\\Q(\\E(e)'}]",
        'allowlist=[1]\nrules=[{id="", regex="abcd"}, {regex="abcd"}, {id="\u00e9", regex="abcd"}]',
    ],
)
def test_whatever_stands_in_it_is_a_rule_or_a_note(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.toml").write_text(text)
    made = from_gitleaks(tmp_path / "g.toml")
    assert made.rules or made.notes
    if made.rules:
        write_rules(tmp_path / "out.yaml", made.rules, "x")
        load_paths([str(tmp_path / "out.yaml")], check_form)
    assert all("\n" not in note for note in made.notes)


# --- regular expressions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"Acme Key": "[a|A][c|C][m|M][e|E].*['|\"][0-9a-f]{8}['|\"]", "none": 3, "hex": "[0-9a-f]{32}"}),
        "- {name: Acme Key, regex: 'acme.*\"[0-9a-f]{8}\"', confidence: high}\n- {name: none}\n- {name: hex, regex: '[0-9a-f]{32}'}",
        "patterns:\n- pattern: {name: Acme Key, regex: 'acme.*\"[0-9a-f]{8}\"', confidence: high}\n- pattern: {name: none}\n- pattern: {name: hex, regex: '[0-9a-f]{32}'}",
    ],
)
def test_lists_of_regular_expressions(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    made = from_regexes(tmp_path / "r.yaml")
    assert found(made.rules, tmp_path, 'acme = "0a1b2c3d"') == {"imported.acme_key": 'acme = "0a1b2c3d"'}
    assert made.notes == [
        "none: has no regular expression",
        "Acme Key: its matches may be of any length: they are looked for 1,024 characters around its word",
        "hex: left out: no word stands in every match, so nothing would start its pattern",
    ]


@pytest.mark.parametrize("text", ["", "[]", "3", "a", "{}"])
def test_a_file_without_regular_expressions(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match="has no regular expressions"):
        from_regexes(tmp_path / "r.yaml")


def test_words_before_alternatives_are_joined_with_them() -> None:
    assert sorted(literals("(A3T[A-Z0-9]|AKIA|ASIA)[A-Z0-9]{16}")) == ["A3T", "AKIA", "ASIA"]


def test_the_command_writes_once_and_names_what_it_left_out(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(GITLEAKS)
    arguments = ("rules", "import", "gitleaks", tmp_path / "g.toml", tmp_path / "out.yaml", "--prefix", "theirs", "--severity", "low")
    done = run(*arguments)
    assert (done.returncode, "3 rules written" in done.stderr, "note: any-hex: left out" in done.stderr) == (0, True, True)
    rules = load_paths([str(tmp_path / "out.yaml")], check_form)
    assert {(rule.id.split(".")[0], rule.severity) for rule in rules} == {("theirs", "low")}
    done = run(*arguments)
    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    assert run("rules", "import", "regex", tmp_path / "no.json", tmp_path / "x.yaml").returncode == 2


# --- a change of rules over a store ---------------------------------------------------------------------------------------------


def asked(number: int, text: str) -> Exchange:
    request = Request(messages=[Message(role="user", parts=[Part(type="text", content=text)])], body_bytes=100)
    plain: dict[str, Any] = {"other_texts": [], "tags": {}, "response": Response(), "findings": [], "risk_score": None, "anomalies": []}
    return full_exchange(number, request=request, **plain)


@pytest.fixture
def store(fill: Callable[..., Path]) -> Path:
    return fill(
        asked(1, "acme_0a1b2c3d for jo@example.org"),
        asked(2, "acme_4e5f6a7b and acme_8c9d0e1f"),
        asked(3, "acme_0a1b2c3d").without_content(),
        asked(4, "nothing"),
    )


def test_what_a_change_adds_removes_and_changes(run: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(RULE.format(id="acme.old", severity="low"))
    (tmp_path / "c.yaml").write_text("security: {plugins: false, rules: [old.yaml], prompt_injection: {enabled: false}}")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.yaml").write_text(RULE.format(id="acme.old", severity="high"))
    (tmp_path / "new" / "b.yaml").write_text(
        RULE.format(id="zeta.new", severity="critical").replace("acme_", "nothing").replace("[a-z0-9]{8}", "")
    )
    options = ("--store", store, "--config", tmp_path / "c.yaml")
    done = run("rules", "test", tmp_path / "new", "--without", "email", *options, "--format", "json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert {rule["rule"]: [rule[name] for name in ("added", "removed", "changed", "same")] for rule in made["rules"]} == {
        "acme.old": [0, 0, 3, 0],
        "email": [0, 1, 0, 0],
        "zeta.new": [1, 0, 0, 0],
    }
    assert (made["exchanges"], made["without_texts"], made["worst"]) == (3, 1, "critical")
    assert "looked at 3 exchanges, 1 were stored without texts: added 1, removed 1, changed 3, same 0" in done.stderr
    table = run("rules", "test", tmp_path / "new", "--without", "email", *options, "--fail-on", "critical")
    assert table.returncode == 1
    assert table.stdout.splitlines()[0].split() == ["rule", "added", "removed", "changed", "same"]
    assert "acme_0a1b2c3d" not in table.stdout
    assert json.loads(run("findings", "--store", store, "--format", "jsonl").stdout or "[]") == [], "nothing is stored"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "no change is given"), (("--without", "emial"), "there is no rule 'emial'"), (("/none",), "no such file or folder")],
)
def test_a_change_that_is_none(run: Callable[..., Any], store: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("rules", "test", *arguments, "--store", store)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_of_the_same_rules_nothing_differs(run: Callable[..., Any], store: Path, packages: Path) -> None:
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = run("rules", "test", "package:acme_rules", "--store", store, env=env)
    assert "added 3, removed 0, changed 0, same 1" in done.stderr
