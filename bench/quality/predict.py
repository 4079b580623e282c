"""Predictions of the scanner on a folder of labelled texts, in the form that a scoring program takes.

    python bench/quality/predict.py pii|secrets DATA_FOLDER > predictions.jsonl
    python bench/quality/predict.py injection DATA_FOLDER > predictions.jsonl      (the shipped model; it has seen the development data)

For injection on the development data use the held-out scores that training writes (`train_injection.py --scores`): folds by source.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from pathlib import Path

from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.settings import DetectionSettings, InjectionSettings, ModelSettings

FILES = {"injection": ("injection", "mentions", "harmful_requests"), "pii": ("pii",), "secrets": ("secrets",)}
CATEGORY = {"pii": "pii", "secrets": "secret"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(FILES))
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    settings = DetectionSettings(plugins=False, prompt_injection=InjectionSettings(model=ModelSettings(enabled=given.task == "injection")))
    scanner = Scanner(settings, lambda value: hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:16])
    for name in FILES[given.task]:
        with gzip.open(given.data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                row = json.loads(line)
                found = scanner.scan(row["text"], row.get("role", "user"), judge=given.task == "injection")
                out = {"id": row.get("id", f"{name}:{number}")}
                if given.task == "injection":
                    out["score"] = found.injection_score
                else:
                    out["spans"] = [
                        {"start": finding.location.start, "end": finding.location.end, "type": finding.type}
                        for finding in found.findings
                        if finding.category == CATEGORY[given.task]
                    ]
                sys.stdout.write(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
