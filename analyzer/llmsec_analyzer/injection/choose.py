"""Which model judges: the one that ships, a file of its form, a classifier of the user's own, or that one and ours side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from llmsec_analyzer.injection.classifier import Classifier
from llmsec_analyzer.injection.model import InjectionModel, Lines, Verdict
from llmsec_analyzer.injection.prepare import Preparer
from llmsec_analyzer.settings import ModelSettings, Profile
from llmsec_tap.errors import ConfigError

# Of ours, on the slowest machine that we know of.
_OUR_CHARS_PER_S: Final = 1_000_000.0
_OURS: Final = "built-in"


class Model(Protocol):
    version: str

    def judge(self, text: str, role: str = "user") -> Verdict: ...

    def heaviest(self, text: str) -> list[str]: ...


class Chosen(NamedTuple):
    """`lines`: what its scores mean. `chars_per_s`: about how fast it is on one core. `ours`: whether the shipped form is in it, which judges a text under its prompt too."""

    model: Model
    lines: Lines
    chars_per_s: float
    ours: bool


def choose_model(settings: ModelSettings, preparer: Preparer, *, profile: Profile = "balanced", runtime: str = "auto") -> Chosen:
    """Load it. Raises ConfigError for files that are not there, or are no model."""
    path = Path(settings.path) if settings.path is not None else None
    wanted = settings.confidence_threshold
    if path is None or not path.is_dir():
        if settings.second_opinion:
            raise ConfigError(
                "security.prompt_injection.model.second_opinion: needs the folder of a classifier in `path`",
                "docs/detection.md says which fit",
            )
        ours = InjectionModel(preparer, path, runtime=runtime)
        lines = ours.lines(profile)
        return Chosen(ours, lines if wanted is None else lines._replace(threshold=wanted), _OUR_CHARS_PER_S, ours=True)
    classifier = Classifier(path, preparer, settings)
    if wanted is not None:
        classifier.threshold = wanted
    if not settings.second_opinion:
        return Chosen(classifier, Lines(*(classifier.threshold,) * 3), classifier.chars_per_s, ours=False)
    ours = InjectionModel(preparer, runtime=runtime)
    lines = ours.lines(profile)
    both = TwoOpinions(classifier, ours, preparer, lines.threshold)
    return Chosen(
        both,
        Lines(*(relative(line, lines.threshold) for line in lines)),
        1 / (1 / classifier.chars_per_s + 1 / _OUR_CHARS_PER_S),
        ours=False,
    )


class TwoOpinions:
    """A text counts where one of the two says so. The score is that of the surer one, on a scale where each one's own threshold is a half."""

    def __init__(self, classifier: Classifier, ours: InjectionModel, preparer: Preparer, threshold: float) -> None:
        """`threshold`: of ours."""
        self._our_threshold = threshold
        self._classifier = classifier
        self._ours = ours
        self._preparer = preparer
        self.threshold = 0.5
        self.version = f"{classifier.version} and {_OURS} {ours.version}"

    def judge(self, text: str, role: str = "user") -> Verdict:
        prepared = self._preparer.prepare(text, role)
        theirs, ours = self._classifier.verdict(prepared, role), self._ours.verdict(prepared, role)
        scores = relative(theirs.score, self._classifier.threshold), relative(ours.score, self._our_threshold)
        opinions = ((self._classifier.version, round(theirs.score, 4)), (_OURS, round(ours.score, 4)))
        surer = theirs if scores[0] >= scores[1] else ours
        return msgspec.structs.replace(surer, score=max(scores), opinions=opinions, complete=theirs.complete and ours.complete)

    def heaviest(self, text: str) -> list[str]:
        return self._ours.heaviest(text)


def relative(score: float, threshold: float) -> float:
    """The score on a scale where the threshold is a half."""
    if score < threshold:
        return score / threshold / 2
    return 0.5 + (score - threshold) / (1 - threshold) / 2 if threshold < 1 else 1.0
