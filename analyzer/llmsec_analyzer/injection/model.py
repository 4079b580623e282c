"""The injection model at work: one score from 0 to 1 for a text, and the part of it that made the score.

Weights come from one ONNX file (ours, trained by training/train_injection.py; or another with the same inputs). It runs on
onnxruntime (`runtime="onnxruntime"`), and for one text at a time as here faster by adding the same weights up with numpy, at 5
against 35 microseconds a window, so that is the default; a test holds the two equal.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from llmsec_analyzer.injection.features import SIZE
from llmsec_analyzer.injection.languages import group_of
from llmsec_analyzer.injection.prepare import Prepared, Preparer
from llmsec_analyzer.injection.weights import ModelFile, read_model
from llmsec_analyzer.settings import Profile
from llmsec_tap.errors import ConfigError

_PHRASES = 4
DEFAULT_MODEL = Path(__file__).parent / "injection.onnx"


class Verdict(msgspec.Struct, frozen=True):
    """`score` is calibrated: of texts with score s about a share s are attacks, at the mix the model card states."""

    score: float
    start: int
    end: int
    signs: tuple[str, ...]
    undone: tuple[str, ...]
    complete: bool
    opinions: tuple[tuple[str, float], ...] = ()  # of several models, each with its name


class Lines(NamedTuple):
    """Scores from which a text counts (`threshold`), counts without any sign of an attack (`alone`), and is grave with one (`sure`)."""

    threshold: float
    alone: float
    sure: float


class InjectionModel:
    """`judge(text, role)`."""

    def __init__(self, preparer: Preparer, path: Path | None = None, *, runtime: str = "auto") -> None:
        self._preparer = preparer
        self.file: ModelFile = read_model(path or DEFAULT_MODEL)
        if self.file.size != SIZE:
            raise ConfigError(f"{path}: the model weighs {self.file.size:,} features, this version makes {SIZE:,}", "train it again")
        self.version = self.file.version
        self._session = self._open_session(path or DEFAULT_MODEL, runtime)
        self.runtime = "numpy" if self._session is None else "onnxruntime"

    @staticmethod
    def _open_session(path: Path, runtime: str) -> Any:
        if runtime != "onnxruntime":
            return None
        try:
            import onnxruntime  # noqa: PLC0415
        except ImportError:
            raise ConfigError("onnxruntime is not installed", "pip install onnxruntime, or leave the choice to us") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def lines(self, profile: Profile) -> Lines:
        """Fixed in training by their shares of harmless texts."""
        file = self.file
        return {
            "strict": Lines(file.strict, file.balanced, file.balanced),
            "balanced": Lines(file.balanced, file.cautious, file.permissive),
            "permissive": Lines(file.cautious, file.permissive, file.permissive),
        }[profile]

    def judge(self, text: str, role: str = "user") -> Verdict:
        return self.verdict(self._preparer.prepare(text, role), role)

    def heaviest(self, text: str) -> list[str]:
        """What of a text spoke most for an attack: up to four phrases, made of words that are in a list of ours and so give nothing away."""
        weighed = [(float(self.file.weights[number]), phrase) for phrase, number in self._preparer.extractor.phrases(text)]
        chosen: list[str] = []
        for weight, phrase in sorted(weighed, reverse=True)[:40]:
            if weight > 0 and not any(phrase in other or other in phrase for other in chosen) and len(chosen) < _PHRASES:
                chosen.append(phrase)
        return chosen

    def verdict(self, prepared: Prepared, role: str) -> Verdict:
        best, worst = prepared.windows[0], -math.inf
        for window in prepared.windows:
            logit = self.logit(window.ids, window.values)
            if logit > worst:
                best, worst = window, logit
        if role in ("system", "developer"):
            worst -= self.file.system_offset  # orders are what system prompts are for
        worst -= self.file.offsets.get(group_of(prepared.normalised.text), 0.0)
        start, end = prepared.normalised.span(best.start, best.end, prepared.judged)
        start, end = prepared.place(start), prepared.place(max(start, end - 1)) + (end > start)
        score = self.calibrated(worst)
        return Verdict(score, start, end, tuple(best.signs), tuple(prepared.normalised.kinds), prepared.scanned == prepared.size)

    def logit(self, ids: Any, values: Any) -> float:
        if self._session is not None:
            return float(self._session.run(None, {"ids": ids, "values": values})[0][0])
        return float(np.dot(self.file.weights[ids], values)) + self.file.bias

    def calibrated(self, logit: float) -> float:
        point = self.file.slope * logit + self.file.intercept
        return 1 / (1 + math.exp(-min(max(point, -60.0), 60.0)))
