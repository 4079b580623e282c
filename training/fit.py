"""The model itself: logistic regression over hashed features, one vote a source, windows of attacks chosen by the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from llmsec_analyzer.injection.features import CLASSES, CONCEPTS, MARKS, SIZE, WORDS

SHARE_ALIKE = "SA"
SYNTHETIC = "training/synthetic.py"
PROGRAMS = "training/synthetic.py, programs"
# The families of features and where each ends in the table.
FAMILIES = dict(zip(("words", "kinds", "concepts", "marks"), np.cumsum((WORDS, CLASSES, CONCEPTS, MARKS)), strict=True))


class Data:
    """The windows of all rows, and which rows count for training (`main`)."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        loaded = np.load(path, allow_pickle=False)
        self.matrix = csr_matrix(
            (loaded["values"], loaded["ids"], loaded["pointers"]), shape=(len(loaded["owners"]), SIZE), dtype=np.float32
        )
        self.owners = loaded["owners"]
        self.labels = loaded["labels"]
        self.sources = loaded["sources"]
        self.row_ids = loaded["row_ids"]
        self.sets = loaded["sets"]
        self.licences = loaded["licences"]
        self.categories = loaded["categories"]
        self.languages = loaded["languages"]
        self.groups = loaded["groups"]
        self.main = self.sets == "injection"
        self.scale = self._scale(settings)
        self.matrix.data *= self.scale[self.matrix.indices]
        self.usable = np.ones(len(self.labels), dtype=bool)
        if settings.get("no_share_alike"):
            self.usable = np.char.find(self.licences, SHARE_ALIKE) < 0
        self.counts = np.bincount(self.owners, minlength=len(self.labels))
        self.starts = np.concatenate(([0], np.cumsum(self.counts)[:-1]))

    def _scale(self, settings: dict[str, Any]) -> np.ndarray:
        """How much each feature is trusted: less where few sources have it, for it may only tell the source."""
        scale = np.ones(SIZE, dtype=np.float32)
        start = 0
        for family, end in FAMILIES.items():
            scale[start:end] = settings.get("families", {}).get(family, 1.0)
            start = end
        full = settings.get("full_trust", 0)
        if full:
            names, number = np.unique(self.sources, return_inverse=True)
            source_of_entry = np.repeat(number[self.owners], np.diff(self.matrix.indptr))
            pairs = np.unique(self.matrix.indices.astype(np.int64) * len(names) + source_of_entry)
            spread = np.bincount(pairs // len(names), minlength=SIZE)
            scale *= np.minimum(1.0, (spread / full)) ** settings.get("trust_power", 0.5)
            scale[spread < settings.get("min_sources", 1)] = 0
        return scale


def fit_rows(data: Data, train: np.ndarray, settings: dict[str, Any]) -> tuple[np.ndarray, float]:
    """The mean of several fits, each without some of the sources: what only one source teaches then weighs less."""
    bags = settings.get("bags", 1)
    if bags == 1:
        return _fit_once(data, train, settings)
    names = np.unique(data.sources[train])
    total, total_bias = np.zeros(SIZE), 0.0
    draw = np.random.default_rng(settings.get("seed", 7))
    for _ in range(bags):
        left_out = draw.choice(names, size=int(len(names) * settings.get("left_out", 0.3)), replace=False)
        weights, bias = _fit_once(data, train & ~np.isin(data.sources, left_out), settings)
        total += weights / bags
        total_bias += bias / bags
    return total, total_bias


def _fit_once(data: Data, train: np.ndarray, settings: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Weights and bias from the rows in `train`. Rows of long attacks count by the one window the model likes best."""
    train = train & data.usable
    power = settings.get("source_power", 0.5)
    weight_of_row = np.zeros(len(data.labels))
    for kind in (0, 1):
        names, counts = np.unique(data.sources[train & (data.labels == kind)], return_counts=True)
        for name, count in zip(names, counts, strict=True):
            mine = train & (data.labels == kind) & (data.sources == name)
            share = count**power / count
            if name == SYNTHETIC:
                share *= settings.get("synthetic", 1.0)
            elif name == PROGRAMS:
                share *= settings.get("programs", 1.0)
            elif name.startswith("languages.yaml"):
                share *= settings.get("languages", 1.0)
            weight_of_row[mine] = share
        total = weight_of_row[train & (data.labels == kind)].sum()
        weight_of_row[train & (data.labels == kind)] *= (
            (settings.get("positive", 0.35) if kind else 1 - settings.get("positive", 0.35)) * 10_000 / total
        )
    weak = np.isin(data.categories, ("taxonomy_intents", "taxonomy_techniques", "taxonomy_evasions"))
    weight_of_row[weak & (data.labels == 1)] *= settings.get("weak", 0.4)
    weight_of_row[(data.categories == "gcg_suffix")] *= settings.get("gcg", 0.5)
    # Texts about attacks are few beside all else of ours, and what they teach is in no other source.
    weight_of_row[(data.sets == "synthetic") & (data.categories == "mention_quoted")] *= settings.get("written_mentions", 3.0)
    for name in ("mentions",):
        weight_of_row[(data.sets == name)] = settings.get("mentions", 0.0)
    use = (weight_of_row > 0)[data.owners]
    # First pass: the whole of short rows, benign windows all; then the best window of each long attack.
    single = data.counts[data.owners] == 1
    benign = data.labels[data.owners] == 0
    chosen = use & (single | benign)
    weights, bias = _solve(data, chosen, weight_of_row, settings, None)
    for _ in range(settings.get("rounds", 1)):
        logits = data.matrix @ weights + bias
        best = np.zeros(len(data.owners), dtype=bool)
        for row in np.flatnonzero((data.labels == 1) & (data.counts > 1) & (weight_of_row > 0)):
            first = data.starts[row]
            best[first + int(np.argmax(logits[first : first + data.counts[row]]))] = True
        chosen = use & (single | benign | best)
        weights, bias = _solve(data, chosen, weight_of_row, settings, np.append(weights, bias))
    return weights, bias


def _solve(
    data: Data, chosen: np.ndarray, weight_of_row: np.ndarray, settings: dict[str, Any], start: np.ndarray | None
) -> tuple[np.ndarray, float]:
    rows = np.flatnonzero(chosen)
    matrix = data.matrix[rows].astype(np.float64)
    transposed = matrix.T.tocsr()
    labels = data.labels[data.owners[rows]].astype(np.float64)
    counts = np.where(labels == 1, 1, data.counts[data.owners[rows]])
    sample = weight_of_row[data.owners[rows]] / np.maximum(1, counts) ** settings.get("window_power", 0.7)
    decay = settings.get("decay", 1.0)
    signs = 2 * labels - 1

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = point[:-1], point[-1]
        margin = signs * (matrix @ weights + bias)
        value = float((sample * np.logaddexp(0, -margin)).sum() + 0.5 * decay * (weights @ weights))
        pull = -signs * sample / (1 + np.exp(margin))
        return value, np.append(transposed @ pull + decay * weights, pull.sum())

    point = np.zeros(SIZE + 1) if start is None else start
    result = minimize(loss, point, jac=True, method="L-BFGS-B", options={"maxiter": settings.get("iterations", 60), "maxcor": 8})
    return result.x[:-1], float(result.x[-1])


def pooled(data: Data, weights: np.ndarray, bias: float) -> np.ndarray:
    """One logit a row: of its windows the highest."""
    logits = data.matrix @ weights + bias
    return np.maximum.reduceat(logits, data.starts)
