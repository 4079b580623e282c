"""Coverage-guided fuzzing of every target: `python tests/fuzz/run.py [--seconds 600] [--jobs 1] [TARGET …]`.

Each target runs in a process of its own (atheris on libFuzzer). A finding is kept as `tests/fuzz/findings/<target>-…` and the
exit code is 1; add such a file's bytes to tests/fuzz/test_targets.py with the fix.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def fuzz(name: str, seconds: int) -> tuple[str, int, str]:
    findings = HERE / "findings"
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        result = subprocess.run(
            [sys.executable, __file__, "--one", name, corpus, f"-max_total_time={seconds}", f"-artifact_prefix={findings}/{name}-",
             "-rss_limit_mb=4096", "-max_len=4096", "-print_final_stats=1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    executed = re.search(r"number_of_executed_units:\s*(\d+)", result.stderr)
    return name, result.returncode, f"{int(executed[1]):,} inputs" if executed else result.stderr[-3000:]


def one(name: str, corpus: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["llmsec_tap", "llmsec_analyzer"]):
        from support.fuzz_targets import TARGETS, seeds
    for number, seed in enumerate(seeds(name)):
        (Path(corpus) / f"seed{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
    atheris.Fuzz()


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    from support.fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []])
    arguments = parser.parse_args()
    failed = False
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name, code, text in pool.map(lambda name: fuzz(name, arguments.seconds), arguments.targets or list(TARGETS)):
            print(f"{name:16} {'ok' if code == 0 else f'FINDING (exit {code})'}  {text}", flush=True)
            failed = failed or code != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
