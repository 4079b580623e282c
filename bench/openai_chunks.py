"""Cost of one chunk of an OpenAI chat stream: JSON to draft, without packets. Prints microseconds as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time

from llmsec_tap.dialects.base import ResponseView
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.dialects.openai_chat import OpenAIChat

CHUNKS = 2000
ROUNDS = 40


def chunks(**extra: object) -> list[bytes]:
    head = {"id": "chatcmpl-9f8e7d6c5b4a", "object": "chat.completion.chunk", "created": 1, "model": "tiny-random-llama"}
    return [
        json.dumps({**head, "choices": [{"index": 0, "delta": {"content": f"tok{i}"}, "finish_reason": None, **extra}]}).encode()
        for i in range(CHUNKS)
    ]


def cost(events: list[bytes]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        handler = OpenAIChat().stream(None, ResponseView(200, {}), Draft())
        began = time.perf_counter_ns()
        for at, event in enumerate(events):
            handler(at, None, event)
        rounds.append((time.perf_counter_ns() - began) / len(events) / 1000)
    return statistics.median(rounds)


def main() -> None:
    result = {"plain_us": cost(chunks()), "logprobs_us": cost(chunks(logprobs=None, token_ids=None)), "python": sys.version.split()[0]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
