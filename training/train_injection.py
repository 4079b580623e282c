"""Train the injection model: features, folds by source, threshold and calibration from held-out sources, one ONNX file.

The same data gives the same bytes: no random number but the seeded ones of the settings, one thread, fixed order.

    python training/train_injection.py DATA_FOLDER OUT.onnx [--no-share-alike]

DATA_FOLDER holds injection.jsonl.gz, mentions.jsonl.gz and harmful_requests.jsonl.gz. Needs scipy besides what scanning needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # sums in one order

import numpy as np
import traffic
from cv import SETTINGS, auc, held_out, offsets
from extract import extract
from fit import Data, fit_rows
from scipy.optimize import minimize

from llmsec_analyzer.injection.weights import ModelFile, write_model

# The share of harmless texts of training that lie above each line, scored by models that have not seen their source.
FALSE_ALARMS = {"strict": 0.03, "balanced": 0.01, "cautious": 0.003, "permissive": 0.001}
SYSTEM_OFFSET = 1.5


def calibration(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and intercept that turn held-out logits into chances (Platt)."""
    signs = 2.0 * labels - 1

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        margin = signs * (point[0] * logits + point[1])
        pull = -signs / (1 + np.exp(margin))
        return float(np.logaddexp(0, -margin).mean()), np.array([(pull * logits).mean(), pull.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", type=Path, help="features made before by extract.py, to save time")
    parser.add_argument("--traffic", type=Path, help="recorded exchanges (traffic.py), whose texts are harmless")
    parser.add_argument("--no-share-alike", action="store_true", help="leave rows under share-alike licences out of training")
    parser.add_argument("--scores", type=Path, help="write held-out scores here, one JSON object a line")
    parser.add_argument("--without", metavar="FOLD/FOLDS", help="leave out that part of the repositories of recorded traffic")
    given = parser.parse_args()
    settings = {**SETTINGS, "no_share_alike": given.no_share_alike}
    with tempfile.TemporaryDirectory() as scratch:
        features = given.features or Path(scratch) / "features.npz"
        if given.features is None:
            extract(given.data, features, given.traffic)
        data = Data(features, settings)
    trained = data.sets != "harmful_requests"
    if given.without:
        left_out = traffic.held_out(given.without)
        trained &= np.array([not (source.startswith("traffic ") and left_out(source[8:])) for source in data.sources])
    main_set = data.sets == "injection"
    logits, _ = held_out(data, settings)
    apart = offsets(data, logits)
    logits -= np.array([apart.get(str(group), 0.0) for group in data.groups])
    negative = np.sort(logits[main_set & (data.labels == 0)])[::-1]
    slope, intercept = calibration(logits[main_set], data.labels[main_set].astype(float))
    weights, bias = fit_rows(data, trained, settings)
    weights = (weights * data.scale).astype(np.float16).astype(np.float32)  # half precision: half the file once packed, same order
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + weights.tobytes()).hexdigest()[:12]
    lines = {profile: float(negative[int(share * len(negative))]) for profile, share in FALSE_ALARMS.items()}
    thresholds = {profile: float(1 / (1 + np.exp(-(slope * line + intercept)))) for profile, line in lines.items()}
    write_model(
        given.out,
        ModelFile(
            weights=weights,
            bias=bias,
            **thresholds,
            slope=slope,
            intercept=intercept,
            system_offset=SYSTEM_OFFSET,
            version=digest,
            offsets=apart,
        ),
    )
    positive = logits[main_set & (data.labels == 1)]
    print(
        json.dumps(
            {
                "version": digest,
                "thresholds": {profile: round(threshold, 4) for profile, threshold in thresholds.items()},
                "offsets": {name: round(offset, 2) for name, offset in apart.items()},
                "slope": round(slope, 4),
                "intercept": round(intercept, 4),
                "held_out_auc": round(auc(positive, negative), 4),
                "held_out_recall": round(float((positive > lines["balanced"]).mean()), 4),
                "mentions_flagged": round(float((logits[data.sets == "mentions"] > lines["balanced"]).mean()), 4),
                "bytes": given.out.stat().st_size,
            }
        )
    )
    if given.scores:
        chance = 1 / (1 + np.exp(-(slope * logits + intercept)))
        with given.scores.open("w", encoding="utf-8") as out:
            for row, score in zip(data.row_ids, chance, strict=True):
                out.write(json.dumps({"id": str(row), "score": float(score)}) + "\n")


if __name__ == "__main__":
    main()
