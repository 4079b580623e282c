"""First step of training: every row of the data as windows of features. Written to one .npz; holds no text."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import authored
import numpy as np
import synthetic
import traffic

from llmsec_analyzer.injection.languages import group_of
from llmsec_analyzer.injection.prepare import Preparer
from llmsec_analyzer.rules.load import load_builtin


def rows(folder: Path, name: str) -> list[dict]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    for number, row in enumerate(found):
        row.setdefault("id", f"{name}:{number}")
    return found


def extract(folder: Path, target: Path, recorded: Path | None = None) -> None:
    """`recorded`: exchanges of real traffic, whose texts are harmless."""
    evidence = [rule for rule in load_builtin() if rule.evidence]
    preparer = Preparer(evidence, frozenset(rule.id for rule in evidence))
    everything = [
        *rows(folder, "injection"),
        *({**row, "label": 0, "set": "mentions"} for row in rows(folder, "mentions")),
        *({**row, "label": 0, "set": "harmful_requests"} for row in rows(folder, "harmful_requests")),
        *synthetic.rows(),
        *authored.phrases(),
        *authored.documents(),
        *(traffic.rows(recorded) if recorded is not None else ()),
    ]
    ids, values, pointers, owners, groups = [], [], [0], [], []
    for number, row in enumerate(everything):
        prepared = preparer.prepare(row["text"], row.get("role", "user"))
        for window in prepared.windows:
            ids.append(window.ids.astype(np.int32))
            values.append(window.values)
            pointers.append(pointers[-1] + len(window.ids))
            owners.append(number)
        groups.append(group_of(prepared.normalised.text))
    np.savez(
        target,
        ids=np.concatenate(ids),
        values=np.concatenate(values),
        pointers=np.array(pointers, dtype=np.int64),
        owners=np.array(owners, dtype=np.int32),
        labels=np.array([row["label"] for row in everything], dtype=np.int8),
        sources=np.array([row.get("source", "").split("@")[0] for row in everything]),
        row_ids=np.array([row["id"] for row in everything]),
        sets=np.array([row.get("set", "injection") for row in everything]),
        licences=np.array([row.get("license") or "" for row in everything]),
        categories=np.array([row.get("category") or "" for row in everything]),
        groups=np.array(groups),
        languages=np.array([row.get("lang") or "" for row in everything]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with injection.jsonl.gz, mentions.jsonl.gz and harmful_requests.jsonl.gz")
    parser.add_argument("target", type=Path)
    parser.add_argument("--traffic", type=Path, help="recorded exchanges (traffic.py)")
    given = parser.parse_args()
    extract(given.data, given.target, given.traffic)


if __name__ == "__main__":
    main()
