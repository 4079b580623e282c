"""A detection process that may read no file any more, as when root's interpreter lies in a folder of root's own, loses no check."""

from __future__ import annotations

import subprocess
import sys

from support.agent import environment

PROGRAM = """
import sys
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.prove.synthetic import expand
from llmsec_analyzer.rules.load import load_builtin
from llmsec_analyzer.settings import DetectionSettings
from llmsec_analyzer.worker.rehearsal import rehearse

rules = load_builtin()
scanner = Scanner(DetectionSettings(plugins=False), lambda text: "f")
if "rehearse" in sys.argv:
    rehearse(scanner)
    assert not scanner.faults

def refuse(event, arguments):
    if event in ("open", "import"):
        raise PermissionError(f"{event} {arguments[0]}")

sys.addaudithook(refuse)
found = 0
for rule in rules:
    if rule.evidence or rule.recognizer == "judgement":
        continue
    for example in rule.examples.match:
        found += any(f.rule_id == rule.id for f in scanner.scan(expand(example), rule.roles[0] if rule.roles else "user").findings)
for number in ("+46 8 123 456 78", "+81 3-1234-5678", "+55 11 91234-5678", "+7 495 123-45-67"):
    found += bool(scanner.scan(f"call me at {number} tomorrow").findings)
print(found, sum(scanner.faults.values()) + sum(scanner.plan.faults.values()))
"""


def run(*arguments: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment(), capture_output=True, text=True, check=True)
    found, faults = done.stdout.split()
    return int(found), int(faults)


def test_nothing_is_loaded_later() -> None:
    found, faults = run("rehearse")
    fewer, lost = run()
    assert faults == 0
    assert lost > 0  # without it
    assert found > fewer
