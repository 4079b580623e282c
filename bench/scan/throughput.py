"""Speed of the rules scanner on chat-like text: whole, and fed in deltas of 20 and 4 bytes, on both engines; and the model.

    python bench/scan/throughput.py [--megabytes 5]

Text is made by seed. Prints one JSON object: MB/s on one core (CPU time), and the delay from a delta to its findings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import time

from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.prove.synthetic import expand
from llmsec_analyzer.settings import DetectionSettings

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "with",
    "was",
    "on",
    "are",
    "be",
    "this",
    "have",
    "from",
    "or",
    "had",
    "by",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "she",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "no",
    "make",
    "than",
    "first",
    "been",
    "its",
    "who",
    "now",
    "people",
    "my",
    "made",
    "over",
    "did",
    "down",
    "only",
    "way",
    "find",
    "use",
    "may",
    "water",
    "long",
    "little",
    "very",
    "after",
    "words",
    "called",
    "just",
    "where",
    "most",
    "know",
    "model",
    "answer",
    "request",
    "token",
    "system",
    "account",
    "password",
    "order",
    "number",
    "city",
    "train",
    "table",
    "data",
    "example",
    "code",
    "function",
    "return",
    "value",
    "error",
    "list",
    "item",
    "question",
    "weather",
]
RARE = (
    "My card is 4111 1111 1111 1111.", "Write to jane.roe@example.org.", "api_key = '<alnum:32>'", "call +44 20 7946 0958", "see https://docs.example.org/a?b=1",
    "ghp_<alnum:36>", "version 1.22.333", "on 2026-03-14 at 12:45", "total 1,234.50 EUR", "192.0.2.17",
)  # fmt: skip


def chat(megabytes: float, seed: int = 11) -> str:
    draw = random.Random(seed)
    pieces: list[str] = []
    size = 0
    while size < megabytes * 1e6:
        sentence = " ".join(draw.choices(WORDS, k=draw.randint(6, 18))).capitalize() + ". "
        if draw.random() < 0.01:
            sentence += expand(draw.choice(RARE)) + " "
        if draw.random() < 0.1:
            sentence += "\n\n"
        pieces.append(sentence)
        size += len(sentence)
    return "".join(pieces)


def streamed(scanner: Scanner, text: str, size: int, together: int = 1) -> dict[str, float]:
    """Answers of 4,000 characters, each a stream of its own. Each call is timed apart for the delays, all together for the speed.

    `together`: so many increments a call, as the detection process does with those that arrived meanwhile.
    """
    answers = [text[at : at + 4000] for at in range(0, len(text), 4000)]
    cut = []
    for answer in answers:
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        cut.append([pieces[at : at + together] for at in range(0, len(pieces), together)])
    best = 0.0
    for _ in range(3):
        started = time.process_time()
        found = 0
        for batches in cut:
            stream = scanner.open("assistant")
            feed = stream.feed_many
            for batch in batches:
                feed(batch)
            stream.close()
            found += len(stream.matches)
        best = max(best, len(text) / 1e6 / (time.process_time() - started))
    delays = []
    for batches in cut[:60]:
        stream = scanner.open("assistant")
        for batch in batches:
            before = time.perf_counter_ns()
            stream.feed_many(batch)
            delays.append(time.perf_counter_ns() - before)
    delays.sort()
    return {
        "mb_per_s": round(best, 2),
        "findings": found,
        "delay_ms_p50": round(delays[len(delays) // 2] / 1e6, 4),
        "delay_ms_p99": round(delays[len(delays) * 99 // 100] / 1e6, 4),
        "delay_ms_max": round(delays[-1] / 1e6, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=5.0)
    given = parser.parse_args()
    text = chat(given.megabytes)
    out: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "megabytes": given.megabytes,
    }
    for engine in ("auto", "portable"):
        scanner = Scanner(DetectionSettings(plugins=False), lambda value: hashlib.sha256(value.encode()).hexdigest()[:16], engine=engine)
        name = scanner.plan.engine
        for size in (4000, 200, 20, 4):
            out[f"{name}, {size}-character deltas"] = streamed(scanner, text, size)
        for size in (20, 5):
            out[f"{name}, {size}-character deltas, 64 at a time"] = streamed(scanner, text, size, 64)
        if scanner.model is not None and engine == "auto":
            sample = [text[at : at + 1000] for at in range(0, 400_000, 1000)]
            for piece in sample[:50]:
                scanner.model.judge(piece)
            started = time.process_time()
            for piece in sample:
                scanner.model.judge(piece)
            out["model"] = {"runtime": scanner.model.runtime, "us_per_kb": round((time.process_time() - started) / len(sample) * 1e6, 1)}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
