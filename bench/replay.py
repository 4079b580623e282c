"""The replay path beside its peers on one capture, in one run: CPU seconds, rates, memory.

  python bench/replay.py [--capture FILE.pcap] [--rounds 3] [--json OUT.json]

Rounds are interleaved and the best of each is taken, so that other load on the machine meets all alike; ratios are what to read.
scapy and pyshark are so slow that they get the first tenth of the packets, and their figure is scaled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

_SCAPY = "import sys\nfrom scapy.utils import PcapReader\nfrom scapy.layers import l2, inet\nfor packet in PcapReader(sys.argv[1]): pass"
_PYSHARK = "import sys, pyshark\nfor packet in pyshark.FileCapture(sys.argv[1], display_filter='http', use_json=True, include_raw=True, keep_packets=False): pass"


def run(command: list[str]) -> tuple[float, float]:
    """CPU seconds (user and system, children included) and peak resident megabytes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} exited with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def first_packets(source: Path, target: Path, share: float) -> float:
    """Copies the first packets of a pcap; returns the share of bytes taken."""
    wanted = source.stat().st_size * share
    # A little at a time: a forked child begins with this process's resident size, which would be taken for its own.
    with source.open("rb") as packets, target.open("wb") as out:
        out.write(packets.read(24))
        while out.tell() < wanted and (head := packets.read(16)):
            out.write(head + packets.read(struct.unpack_from("<I", head, 8)[0]))
        return out.tell() / source.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flows", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        capture = arguments.capture
        if capture is None:
            from make_capture import make

            capture = folder / "made.pcap"
            make(capture, flows=arguments.flows, events=200, open_flows=200, seed=1)
        part = folder / "part.pcap"
        share = first_packets(capture, part, 0.1)
        detecting = [str(Path(sys.executable).parent / "llmsec-analyze"), "replay", str(capture)]
        analyze = [*detecting, "--no-detect"]
        python = [sys.executable, "-c"]
        commands: dict[str, tuple[list[str], float]] = {
            "replay, jsonl, no store": ([*analyze, "--format", "jsonl", "--store", "none"], 1),
            "replay, store": ([*analyze, "--format", "none", "--store", str(folder / "store")], 1),
            "replay, store, detection (both processes)": ([*detecting, "--format", "none", "--store", str(folder / "store")], 1),
        }
        if shutil.which("tshark"):
            fields = ["-T", "fields", "-e", "http.request.uri", "-e", "http.response.code", "-e", "http.file_data"]
            commands["tshark -Y http -T fields"] = (["tshark", "-r", str(capture), "-Y", "http", *fields], 1)
            commands["pyshark, json"] = ([*python, _PYSHARK, str(part)], share)
        commands["scapy PcapReader"] = ([*python, _SCAPY, str(part)], share)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(arguments.rounds):
            for label, (command, scale) in commands.items():
                shutil.rmtree(folder / "store", ignore_errors=True)
                cpu, memory = run(command)
                if label not in best or cpu / scale < best[label][0]:
                    best[label] = cpu / scale, memory
        ours = best["replay, jsonl, no store"][0]
        print(f"{capture.stat().st_size / 1e6:.0f} MB, best of {arguments.rounds} interleaved rounds")
        print(f"{'':28}{'CPU s':>8}{'MB/s':>8}{'peak MB':>9}{'x ours':>8}")
        for label, (cpu, memory) in best.items():
            print(f"{label:28}{cpu:8.2f}{capture.stat().st_size / 1e6 / cpu:8.1f}{memory:9.0f}{cpu / ours:8.1f}")
        if arguments.json:
            commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
            facts = {
                "commit": commit,
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "kernel": platform.release(),
                "python": platform.python_version(),
            }
            arguments.json.write_text(
                json.dumps(facts | {"results": {k: {"cpu_s": c, "peak_mb": m} for k, (c, m) in best.items()}}, indent=1)
            )


if __name__ == "__main__":
    main()
