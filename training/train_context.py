"""Train the judge of pairs: a message under its system prompt. One ONNX file, of the same form as the injection model's.

    python training/train_context.py DATA_FOLDER SCORES INJECTION.onnx OUT.onnx --traffic exchanges.jsonl.gz [--report]

DATA_FOLDER holds contextual.jsonl.gz and injection.jsonl.gz; SCORES are the held-out scores that train_injection.py writes; what a
text alone is taken for comes from them where its text is in them, else from INJECTION.onnx. `--report` measures on folds by system
prompt, and on the prompts of each author alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # sums in one order

import authored
import numpy as np
import traffic
from cv import auc
from extract import rows
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from train_injection import calibration

from llmsec_analyzer.injection.context import SIZE, pair_windows, read_system
from llmsec_analyzer.injection.model import InjectionModel
from llmsec_analyzer.injection.prepare import Preparer
from llmsec_analyzer.injection.weights import PAIRS, ModelFile, write_model
from llmsec_analyzer.rules.load import load_builtin

FALSE_ALARMS = 0.025
MIXED = 5_500  # harmless texts put under prompts that have nothing to do with them; what is an attack by itself is the other model's
DECAY, ROUNDS, ITERATIONS = 0.5, 2, 60
# How much a row of each set weighs.
WEIGHTS = {"contextual": 1.0, "authored": 1.5, "traffic": 2.0, "injection": 1.0}


def pairs(folder: Path, recorded: Path | None) -> Iterator[dict[str, Any]]:
    contextual = [{**row, "set": "contextual"} for row in rows(folder, "contextual")]
    yield from contextual
    ours = list(authored.pairs())
    yield from ours
    observed = list(traffic.pairs(recorded)) if recorded is not None else []
    yield from observed
    draw = random.Random(5)  # noqa: S311 - texts, not keys
    prompts = sorted({row["system"] for row in [*contextual, *ours, *observed]})
    texts = [row for row in rows(folder, "injection") if row.get("role", "user") != "system" and not row["label"]]
    for row in draw.sample(texts, MIXED):
        yield {**row, "system": draw.choice(prompts), "set": "injection", "family": row["source"].split("@")[0] + "/"}


class Pairs:
    """The windows of all pairs as a matrix; `scores` of texts alone by row id, in log-odds."""

    def __init__(self, given: list[dict[str, Any]], scores: dict[str, float], model: InjectionModel) -> None:
        ids, values, pointers, owners = [], [], [0], []
        for number, row in enumerate(given):
            role = row.get("role", "user")
            score = scores.get(row["id"])
            alone = _logit(model.judge(row["text"], role).score if score is None else score)
            for window in pair_windows(_read(row["system"]), row["text"], role, alone):
                ids.append(window.ids)
                values.append(window.values)
                pointers.append(pointers[-1] + len(window.ids))
                owners.append(number)
        self.owners = np.array(owners)
        self.matrix = csr_matrix(
            (np.concatenate(values), np.concatenate(ids), np.array(pointers)), shape=(len(owners), SIZE), dtype=np.float64
        )
        kept = np.unique(self.owners)
        self.rows = [given[number] for number in kept]
        self.owners = np.searchsorted(kept, self.owners)
        self.labels = np.array([row["label"] for row in self.rows])
        self.sets = np.array([row["set"] for row in self.rows])
        self.prompts = np.array([row["family"].split("/")[0] for row in self.rows])
        self.counts = np.bincount(self.owners)
        self.starts = np.concatenate(([0], np.cumsum(self.counts)[:-1]))
        self.weights = np.array([WEIGHTS[name] for name in self.sets])

    def fit(self, train: np.ndarray) -> np.ndarray:
        """Weights, the bias last. Of an attack the window counts that the model of the round before takes for the worst."""
        point = None
        for _ in range(ROUNDS + 1):
            use = train[self.owners]
            if point is not None:
                logits = self.matrix @ point[:-1]
                worst = np.zeros(len(self.owners), dtype=bool)
                for row in np.flatnonzero((self.labels == 1) & train):
                    first = self.starts[row]
                    worst[first + int(np.argmax(logits[first : first + self.counts[row]]))] = True
                use = use & ((self.labels[self.owners] == 0) | worst)
            point = self._solve(use, point)
        assert point is not None
        return point

    def _solve(self, use: np.ndarray, start: np.ndarray | None) -> np.ndarray:
        matrix = self.matrix[use]
        transposed = matrix.T.tocsr()
        owners = self.owners[use]
        signs = 2.0 * self.labels[owners] - 1
        sample = self.weights[owners] / np.where((self.labels[owners] == 1) & (start is not None), 1, self.counts[owners]) ** 0.7

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            margin = signs * (matrix @ point[:-1] + point[-1])
            pull = -signs * sample / (1 + np.exp(margin))
            value = float((sample * np.logaddexp(0, -margin)).sum() + 0.5 * DECAY * (point[:-1] @ point[:-1]))
            return value, np.append(transposed @ pull + DECAY * point[:-1], pull.sum())

        begin = np.zeros(SIZE + 1) if start is None else start
        return minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x

    def logits(self, point: np.ndarray) -> np.ndarray:
        return np.maximum.reduceat(self.matrix @ point[:-1] + point[-1], self.starts)

    def held_out(self, folds: int = 5) -> np.ndarray:
        """Logits by models that have seen nothing of a row's system prompt (of injection texts: of their source)."""
        names = np.unique(self.prompts)
        np.random.default_rng(3).shuffle(names)
        number = {name: index % folds for index, name in enumerate(names)}
        fold = np.array([number[name] for name in self.prompts])
        out = np.zeros(len(self.labels))
        for index in range(folds):
            out[fold == index] = self.logits(self.fit(fold != index))[fold == index]
        return out


_prompts: dict[str, Any] = {}


def _read(system: str) -> Any:
    if system not in _prompts:
        _prompts[system] = read_system(system)
    return _prompts[system]


def _logit(score: float) -> float:
    score = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(score / (1 - score))


def _line(negative: np.ndarray, share: float) -> float:
    return float(np.sort(negative)[::-1][int(share * len(negative))])


def report(data: Pairs, logits: np.ndarray) -> None:
    def show(name: str, rows: np.ndarray, scores: np.ndarray) -> None:
        ours, theirs = scores[rows & (data.labels == 1)], scores[rows & (data.labels == 0)]
        if len(ours) and len(theirs):
            shares = ", ".join(f"{(ours > _line(theirs, share)).mean():.3f} at {share:.0%}" for share in (0.01, 0.02, 0.05))
            print(f"{name}: {len(ours)} and {len(theirs)} rows, AUC {auc(ours, theirs):.3f}, recall {shares}")

    tool = np.array([row.get("role") == "tool" for row in data.rows])
    for name in np.unique(data.sets):
        show(f"{name}, by system prompt", data.sets == name, logits)
    authors = {
        "contextual, written one by one": np.char.startswith(data.prompts, "s."),
        **{
            name: np.char.startswith(data.prompts, name + ".")
            for name in sorted({path.stem for path in authored.FOLDER.glob("contexts_*.yaml")})
        },
    }
    for name, rows_ in authors.items():
        show(f"{name}, by system prompt, user", rows_ & ~tool, logits)
        show(f"{name}, by system prompt, tool", rows_ & tool, logits)
        show(f"{name}, author unseen, user", rows_ & ~tool, data.logits(data.fit(~rows_)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--traffic", type=Path, help="recorded exchanges (traffic.py)")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--without", metavar="FOLD/FOLDS", help="leave out that part of the repositories of recorded traffic")
    given = parser.parse_args()
    evidence = [rule for rule in load_builtin() if rule.evidence]
    model = InjectionModel(Preparer(evidence, frozenset(rule.id for rule in evidence)), given.model)
    with given.scores.open(encoding="utf-8") as lines:
        scores = {row["id"]: row["score"] for row in map(json.loads, lines)}
    data = Pairs(list(pairs(given.data, given.traffic)), scores, model)
    logits = data.held_out()
    if given.report:
        report(data, logits)
    judged = np.isin(data.sets, ("contextual", "authored"))
    line = _line(logits[judged & (data.labels == 0)], FALSE_ALARMS)
    slope, _ = calibration(logits, data.labels.astype(float))
    # The line of pairs is the threshold of texts: one threshold serves both.
    intercept = _logit(model.file.balanced) - slope * line
    left_out = traffic.held_out(given.without) if given.without else lambda _repository: False
    point = data.fit(np.array([not (row["set"] == "traffic" and left_out(row["source"][8:])) for row in data.rows]))
    weights = point[:-1].astype(np.float16).astype(np.float32)
    digest = hashlib.sha256(weights.tobytes()).hexdigest()[:12]
    write_model(
        given.out,
        ModelFile(
            weights=weights,
            bias=float(point[-1]),
            strict=model.file.strict,
            balanced=model.file.balanced,
            cautious=model.file.cautious,
            permissive=model.file.permissive,
            slope=slope,
            intercept=intercept,
            system_offset=0.0,
            version=digest,
            form=PAIRS,
        ),
    )
    by_set = {str(name): round(float((logits[(data.sets == name) & (data.labels == 0)] > line).mean()), 5) for name in np.unique(data.sets)}
    recall = {str(name): round(float((logits[(data.sets == name) & (data.labels == 1)] > line).mean()), 4) for name in np.unique(data.sets)}
    print(json.dumps({"version": digest, "false_alarms": by_set, "recall": recall, "bytes": given.out.stat().st_size}))


if __name__ == "__main__":
    main()
