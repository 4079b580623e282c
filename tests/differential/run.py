#!/usr/bin/env python3
"""The differential test for as long as one likes.

  python tests/differential/run.py [--seconds 3600] [--seed 0] [--kinds json,charset,…] [--save FOLDER]

Prints each new kind of difference (the steps that made it) once, and at the end how many requests were made, how many each server
read, and the differences left. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from differential.judge import judge  # noqa: E402
from differential.real_servers import real_servers  # noqa: E402
from differential.requests import KINDS, make  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--save", type=Path, help="folder for requests that differ")
    arguments = parser.parse_args()
    kinds = tuple(arguments.kinds.split(","))
    taken: Counter[str] = Counter()
    differences: Counter[str] = Counter()
    seed, made, asked = arguments.seed, 0, 0
    with tempfile.TemporaryDirectory() as folder, real_servers(Path(folder)) as servers:
        for name, why in servers.missing.items():
            print(f"without {name}: {why}")
        until = time.monotonic() + arguments.seconds
        while time.monotonic() < until:
            sample = make(seed, kinds)
            verdict = judge(sample, servers)
            seed, made, asked = seed + 1, made + 1, asked + len(servers.ports)
            taken.update(verdict.taken)
            if verdict.missed:
                label = " ".join(sorted(sample.steps))
                if not differences[label]:
                    marks = [[anomaly.name for anomaly in record.anomalies] for record in verdict.records]
                    facts = [(record.provider, record.completeness) for record in verdict.records]
                    print(
                        f"seed {sample.seed}: {label}: {', '.join(verdict.missed)} read it; {facts} {marks}\n  {sample.raw[:300]!r}",
                        flush=True,
                    )
                    if arguments.save:
                        arguments.save.mkdir(parents=True, exist_ok=True)
                        (arguments.save / f"{sample.seed}.http").write_bytes(sample.raw)
                differences[label] += 1
    print(
        f"{made:,} requests (seeds {arguments.seed} to {seed - 1}), {asked:,} asked; read by: "
        + ", ".join(f"{name} {count:,}" for name, count in sorted(taken.items()))
    )
    print(f"{sum(differences.values()):,} differences of {len(differences):,} kinds")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
