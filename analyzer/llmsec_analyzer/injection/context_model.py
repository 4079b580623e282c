"""The judge of pairs at work: a text under its system prompt, and the statement of the prompt that it goes against."""

from __future__ import annotations

import math
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np

from llmsec_analyzer.injection.context import MAX_SYSTEM, SIZE, Statement, SystemPrompt, pair_windows, read_system
from llmsec_analyzer.injection.weights import PAIRS, read_model
from llmsec_tap.errors import ConfigError

DEFAULT_CONTEXT = Path(__file__).parent / "context.onnx"
_PROMPTS = 64  # as read; conversations send theirs again with every request


class PairVerdict(msgspec.Struct, frozen=True):
    """`score` is on the scale of the injection model: one threshold serves both. Offsets are of the text.

    `against`: the statement of the prompt that the text takes up most, where it shares `shared` words with one.
    """

    score: float
    start: int
    end: int
    against: Statement | None
    shared: int


class ContextModel:
    def __init__(self, path: Path | None = None) -> None:
        self._file = read_model(path or DEFAULT_CONTEXT, PAIRS)
        if self._file.size != SIZE:
            raise ConfigError(f"{path}: the model weighs {self._file.size:,} features, this version makes {SIZE:,}", "train it again")
        self.version = self._file.version
        self._prompts: OrderedDict[bytes, SystemPrompt] = OrderedDict()

    def judge(self, system: str, text: str, role: str, alone: float) -> PairVerdict | None:
        """`alone`: the score of the text by itself. None where the text has nothing to do with the prompt."""
        alone = min(max(alone, 1e-6), 1 - 1e-6)
        windows = pair_windows(self._read(system), text, role, math.log(alone / (1 - alone)))
        if not windows:
            return None
        logits = [float(np.dot(self._file.weights[window.ids], window.values)) for window in windows]
        worst = max(range(len(windows)), key=logits.__getitem__)
        point = self._file.slope * (logits[worst] + self._file.bias) + self._file.intercept
        window = windows[worst]
        return PairVerdict(
            1 / (1 + math.exp(-min(max(point, -60.0), 60.0))), window.start, window.end, window.statement, len(window.shared)
        )

    def _read(self, system: str) -> SystemPrompt:
        key = blake2b(system[:MAX_SYSTEM].encode("utf-8", "surrogatepass"), digest_size=16).digest()
        prompt = self._prompts.get(key)
        if prompt is None:
            prompt = self._prompts[key] = read_system(system)
            if len(self._prompts) > _PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return prompt
