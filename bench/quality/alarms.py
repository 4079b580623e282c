"""Findings on recorded traffic by severity and category, for a thousand exchanges: how often an operator is alarmed by what nobody attacks with.

    PYTHONPATH=training python bench/quality/alarms.py exchanges.jsonl.gz [--held-out FOLD/FOLDS] [--show CATEGORY]

`--held-out 0/4` takes about a fourth of the repositories only: give it models that were trained without them (`--without 0/4` of
train_injection.py and train_context.py).
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from pathlib import Path

import msgspec
import traffic

from llmsec_analyzer.injection.context_model import ContextModel
from llmsec_analyzer.judge.exchange import ExchangeDetector
from llmsec_analyzer.judge.exchange_parts import text_parts, unread
from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.settings import DetectionSettings, InjectionSettings, ModelSettings, Profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--profile", choices=("strict", "balanced", "permissive"), default="balanced")
    parser.add_argument("--held-out", metavar="FOLD/FOLDS")
    parser.add_argument("--model", help="an injection model other than the one that ships")
    parser.add_argument("--context", type=Path, help="a judge of pairs other than the one that ships")
    parser.add_argument("--show", help="print the findings of this category")
    given = parser.parse_args()
    profile: Profile = given.profile
    settings = DetectionSettings(plugins=False, profile=profile, prompt_injection=InjectionSettings(model=ModelSettings(path=given.model)))
    scanner = Scanner(settings, lambda value: hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:16])
    if given.context:
        scanner.context = ContextModel(given.context)
    detector = ExchangeDetector(scanner)
    chosen = traffic.held_out(given.held_out) if given.held_out else lambda _repository: True
    exchanges = 0
    found: Counter[tuple[str, str]] = Counter()
    for recording, exchange in traffic.exchanges(given.recorded):
        if not chosen(recording["source_repo"]):
            continue
        exchanges += 1
        report = detector.examine(exchange.exchange_id, list(text_parts(exchange)), unread=unread(exchange))
        # An exchange alarms once for each category and severity, however many of its texts do.
        found.update({(finding.category, finding.severity) for finding in report.findings})
        for finding in report.findings if given.show else ():
            if finding.category == given.show and finding.severity in ("medium", "high", "critical"):
                where = f"{recording['source_repo']} {finding.location.part}"
                print(msgspec.json.encode([where, finding.severity, finding.rule_id, finding.preview, finding.explanation]).decode())
    print(f"{exchanges:,} exchanges; exchanges with a finding, for 1,000:")
    for (category, severity), count in sorted(found.items()):
        print(f"  {category:22} {severity:9} {1000 * count / exchanges:7.2f}  ({count})")


if __name__ == "__main__":
    main()
