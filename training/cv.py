"""How well the model does on sources it has not seen: folds by source, thresholds fixed on the other folds.

Prints recall, false positives and ROC-AUC out of fold, by kind of text and language where that is telling.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from fit import Data, fit_rows, pooled

FOLDS = 6
SETTINGS = {
    "iterations": 50,
    "decay": 0.05,
    "source_power": 0.5,
    "full_trust": 5,
    "trust_power": 1,
    "mentions": 3.0,
    "programs": 0.25,
    "languages": 0.4,
}
FALSE_ALARMS = 0.01
_LEAST = 400  # harmless texts from which a group of languages has a line of its own


def folds_of(data: Data) -> np.ndarray:
    """Sources spread over folds so that rows and attacks are about even; a source is never split."""
    fold = np.full(len(data.labels), -1, dtype=np.int8)
    load = np.zeros((FOLDS, 2))
    # The templates say the same in each language: as one fold they would leave the rest without any text of 20 languages.
    templates = np.char.find(data.sources, "r3 templates") >= 0
    sources = np.where(templates, np.char.add("r3 templates ", data.languages), data.sources)
    names, counts = np.unique(sources[data.main], return_counts=True)
    total = np.array([(data.labels[data.main] == kind).sum() for kind in (0, 1)], dtype=float)
    for name in names[np.argsort(-counts, kind="stable")]:
        mine = data.main & (sources == name)
        amount = np.array([(data.labels[mine] == kind).sum() for kind in (0, 1)]) / total
        best = min(range(FOLDS), key=lambda number: (((load[number] + amount) ** 2).sum() - (load[number] ** 2).sum(), number))
        fold[mine] = best
        load[best] += amount
    # Repositories of recorded traffic and languages of our own texts are spread likewise.
    names, counts = np.unique(data.sources[np.isin(data.sets, ("traffic", "authored"))], return_counts=True)
    filled = np.zeros(FOLDS)
    for name, count in sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])):
        best = int(np.argmin(filled))
        fold[data.sources == name] = best
        filled[best] += count
    # Texts about attacks go with the source they were taken from.
    first = dict(zip(sources[data.main].tolist(), fold[data.main].tolist(), strict=True))
    for row in np.flatnonzero(data.sets == "mentions"):
        fold[row] = first[str(data.sources[row])]
    return fold


def held_out(data: Data, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the logit of a model that has seen nothing of its source (texts of ours: in every model), and its fold.

    Harmful wishes are in no model; theirs is the mean over all.
    """
    fold = folds_of(data)
    trained = data.sets != "harmful_requests"
    logits = np.zeros(len(data.labels))
    rest = np.zeros(len(data.labels))
    for number in range(FOLDS):
        scores = pooled(data, *fit_rows(data, trained & (fold != number), settings))
        logits[fold == number] = scores[fold == number]
        rest += scores / FOLDS
    logits[fold < 0] = rest[fold < 0]
    return logits, fold


def offsets(data: Data, logits: np.ndarray, share: float = 0.01) -> dict[str, float]:
    """By group of languages, how much higher than over all of them the logit lies that this share of harmless texts passes.

    Of a group with few harmless texts the offset counts less; none is more than a logit.
    """
    judged = np.isin(data.sets, ("injection", "authored")) & (data.labels == 0)

    def line(rows: np.ndarray) -> float:
        return float(np.sort(logits[rows])[::-1][int(share * rows.sum())])

    common = line(judged)
    found: dict[str, float] = {}
    for group in np.unique(data.groups):
        rows = judged & (data.groups == group)
        if rows.sum() >= _LEAST:
            found[str(group)] = float(np.clip((line(rows) - common) * rows.sum() / (rows.sum() + _LEAST), -1.0, 1.0))
    return found


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    ranks = np.concatenate((positive, negative)).argsort(kind="stable").argsort(kind="stable") + 1
    return float((ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2) / len(positive) / len(negative))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("--scores", type=Path, help="write out-of-fold scores here, one JSON object a line")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: what to change of the settings that training uses")
    parser.add_argument("--false-alarms", type=float, default=FALSE_ALARMS, help="the share that the threshold fixed beforehand aims at")
    given = parser.parse_args()
    given.settings = {**SETTINGS, **given.settings}
    data = Data(given.features, given.settings)
    logits, fold = held_out(data, given.settings)
    apart = offsets(data, logits)
    logits -= np.array([apart.get(str(group), 0.0) for group in data.groups])
    print("offsets", {name: round(value, 2) for name, value in apart.items()})
    main_set = data.sets == "injection"
    positive, negative = logits[main_set & (data.labels == 1)], logits[main_set & (data.labels == 0)]
    print(f"AUC {auc(positive, negative):.4f}")
    for rate in (0.001, 0.005, 0.01, 0.02):
        threshold = np.sort(negative)[::-1][int(rate * len(negative))]
        print(f"recall at {rate:.1%}: {(positive > threshold).mean():.4f} (logit {threshold:.3f})")
    threshold = np.sort(negative)[::-1][int(0.01 * len(negative))]
    real_positive, real_negative = [], []
    for number in range(FOLDS):  # the threshold comes from the other folds
        mine = fold == number
        others = negative_of(logits, data, main_set & ~mine)
        line = np.sort(others)[::-1][int(given.false_alarms * len(others))]
        real_positive += list(logits[mine & (data.labels == 1)] > line)
        real_negative += list(logits[mine & (data.labels == 0) & main_set] > line)
        print(
            f"  fold {number}: {mine.sum()} rows, recall {np.mean(logits[mine & (data.labels == 1)] > line):.3f}, FPR {np.mean(logits[mine & (data.labels == 0)] > line):.4f},"
            f" AUC {auc(logits[mine & (data.labels == 1)], logits[mine & (data.labels == 0)]):.3f}"
        )
    print(f"threshold fixed beforehand: recall {np.mean(real_positive):.4f} at FPR {np.mean(real_negative):.4f}")
    for name in ("mentions", "harmful_requests", "traffic"):
        print(f"{name}: {(logits[data.sets == name] > threshold).mean():.3f} flagged")
    for label in (1, 0):
        names = np.unique(data.categories[main_set & (data.labels == label)])
        print(
            {
                str(name): round(float((logits[main_set & (data.labels == label) & (data.categories == name)] > threshold).mean()), 3)
                for name in names
            }
        )
    for kind, chosen in (("English", data.languages == "en"), ("other languages", data.languages != "en")):
        chosen &= main_set
        ours, theirs = logits[chosen & (data.labels == 1)], logits[chosen & (data.labels == 0)]
        line = np.sort(theirs)[::-1][int(0.01 * len(theirs))]
        print(
            f"{kind}: AUC {auc(ours, theirs):.4f}, recall {(ours > threshold).mean():.4f} at FPR {(theirs > threshold).mean():.4f},"
            f" by a line of its own {(ours > line).mean():.4f}"
        )
    for kind, chosen in (("authored, English", data.languages == "en"), ("authored, other languages", data.languages != "en")):
        chosen &= data.sets == "authored"
        ours, theirs = logits[chosen & (data.labels == 1)], logits[chosen & (data.labels == 0)]
        line = np.sort(theirs)[::-1][int(0.01 * len(theirs))]
        print(
            f"{kind}: AUC {auc(ours, theirs):.4f}, recall {(ours > threshold).mean():.4f} at FPR {(theirs > threshold).mean():.4f},"
            f" by a line of its own {(ours > line).mean():.4f}"
        )
    for name in ("r3", ""):
        mine = main_set & (np.char.find(data.sources, "r3 templates") >= 0) == (name == "r3")
        mine &= main_set
        print(
            "r3" if name else "not r3",
            f"AUC {auc(logits[mine & (data.labels == 1)], logits[mine & (data.labels == 0)]):.4f}",
            f"recall {(logits[mine & (data.labels == 1)] > threshold).mean():.4f} FPR {(logits[mine & (data.labels == 0)] > threshold).mean():.4f}",
        )
    if given.scores:
        with given.scores.open("w") as out:
            for row, logit in zip(data.row_ids, logits, strict=True):
                out.write(json.dumps({"id": str(row), "score": float(1 / (1 + np.exp(-logit)))}) + "\n")


def negative_of(logits: np.ndarray, data: Data, rows: np.ndarray) -> np.ndarray:
    return logits[rows & (data.labels == 0)]


if __name__ == "__main__":
    main()
