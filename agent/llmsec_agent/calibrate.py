"""`llmsec-analyze calibrate`: what the model says of one's own traffic, and the threshold for a share of false alarms one can live with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from llmsec_agent.analyze import has_texts
from llmsec_analyzer.injection.choose import Model, choose_model
from llmsec_analyzer.injection.classifier import log_odds
from llmsec_analyzer.injection.prepare import Preparer
from llmsec_analyzer.judge.exchange_parts import text_parts
from llmsec_analyzer.judge.roles import OWN_ROLES
from llmsec_analyzer.judge.rule_set import rule_set
from llmsec_analyzer.settings import DetectionSettings, ModelSettings, Platt
from llmsec_analyzer.stored.exchanges import of_anomalies
from llmsec_analyzer.stored.session import QuerySession
from llmsec_tap.errors import ConfigError

SHARES: Final = (0.5, 0.9, 0.99, 0.999)
_HIGHEST: Final = 5
_MAX_LINE_BYTES: Final = 8 << 20
_MAX_LABELS: Final = 200_000
# Of each kind, at least so many make a line through log-odds worth drawing.
_LEAST_LABELLED: Final = 10
_WORDS: Final = {"attack": True, "harmless": False, "1": True, "0": False, "true": True, "false": False}
_Z95: Final = 1.645  # one-sided


class Labelled(NamedTuple):
    text: str
    role: str
    is_attack: bool


class Scored(NamedTuple):
    """A score of the model, and where the text stands; the place is empty for labelled texts."""

    score: float
    exchange_id: str
    part: str


class Calibration(msgspec.Struct, kw_only=True):
    """`at_most`: the share of harmless texts over the threshold is below this with a certainty of 95 %. `found`: of labelled attacks."""

    model: str
    texts: int
    harmless: int
    attacks: int
    quantiles: dict[str, float]
    threshold: float
    share: float
    at_most: float
    found: float | None = None
    platt: Platt | None = None
    highest: list[Scored] = []
    notes: list[str] = []


def calibrate(session: QuerySession, settings: DetectionSettings, target: float, labelled: Sequence[Labelled], limit: int) -> Calibration:
    """Judge the texts of stored requests, each once, and take them for harmless but for those that are labelled.

    Of `settings` the model counts, without its threshold, calibration and second opinion. Raises ConfigError, also where there is nothing to judge.
    """
    injection = settings.prompt_injection
    plain = msgspec.structs.replace(injection.model, enabled=True, confidence_threshold=None, platt=None, second_opinion=False)
    rules = rule_set(settings)
    model = choose_model(plain, Preparer(rules.evidence, rules.trusted, settings.engine)).model
    notes: list[str] = []
    known = {_hash(one.text) for one in labelled}
    named = _judged(model, [one for one in labelled if not one.is_attack])
    attacks = _judged(model, [one for one in labelled if one.is_attack])
    harmless = [*_stored(session, model, known, limit), *named]
    if not harmless:
        raise ConfigError("there is no text to judge", "the store has no requests with texts; name one with --store, or --labels")
    platt = _platt([one.score for one in named], [one.score for one in attacks], plain, notes) if labelled else None
    scores = np.array([_with(platt, one.score) for one in harmless])
    threshold = _threshold(scores, target)
    over = int((scores >= threshold).sum())
    if target * len(scores) < 1:
        notes.append(f"{len(scores):,} texts are too few to tell a share of {target:g}: take {math.ceil(3 / target):,} and more")
    if over > target * len(scores):
        notes.append("more texts than that have the highest score that there is: no threshold parts them from others; look at the highest")
    order = sorted(harmless, key=lambda one: -one.score)
    return Calibration(
        model=model.version,
        texts=len(harmless) + len(attacks),
        harmless=len(harmless),
        attacks=len(attacks),
        quantiles={f"{share:g}": round(float(np.quantile(scores, share)), 6) for share in SHARES} | {"1": round(float(scores.max()), 6)},
        threshold=threshold,
        share=over / len(scores),
        at_most=_upper(over, len(scores)),
        found=sum(_with(platt, one.score) >= threshold for one in attacks) / len(attacks) if attacks else None,
        platt=platt,
        highest=[one._replace(score=round(_with(platt, one.score), 6)) for one in order if one.part][:_HIGHEST],
        notes=notes,
    )


def read_labels(path: Path) -> list[Labelled]:
    """JSON lines of `text`, `label` (attack or harmless, 1 or 0) and perhaps `role`. Raises ConfigError with file and line."""
    found: list[Labelled] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
                if line.strip():
                    found.append(_label(line, f"{path}:{number}"))
                if len(found) > _MAX_LABELS:
                    raise ConfigError(f"{path}:{number}: more than {_MAX_LABELS:,} labelled texts")
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read: {fault.strerror}") from None
    return found


def _label(line: bytes, place: str) -> Labelled:
    hint = 'a line is {"text": …, "label": "attack" or "harmless"}'
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{place}: not JSON", hint) from None
    text, label = (value.get("text"), value.get("label")) if isinstance(value, dict) else (None, None)
    is_attack = _WORDS.get(str(label).lower())
    if not isinstance(text, str) or is_attack is None:
        raise ConfigError(f"{place}: has no text with a label", hint)
    role = value.get("role")
    return Labelled(text, role if isinstance(role, str) else "user", is_attack)


def _stored(session: QuerySession, model: Model, known: set[bytes], limit: int) -> Iterator[Scored]:
    """Conversations send their earlier turns again: each text counts once."""
    seen = set(known)
    for exchange in of_anomalies(session, None):
        if exchange.provider is None or not has_texts(exchange):
            continue
        for part in text_parts(exchange):
            if not part.is_request or not part.text.strip():
                continue
            name = _hash(part.text)
            if name in seen:
                continue
            seen.add(name)
            role = "user" if part.role in OWN_ROLES else part.role
            yield Scored(model.judge(part.text, role).score, exchange.exchange_id, str(part.place))
            if len(seen) - len(known) >= limit:
                return


def _judged(model: Model, texts: Sequence[Labelled]) -> list[Scored]:
    return [Scored(model.judge(one.text, one.role).score, "", "") for one in texts]


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _threshold(scores: Any, target: float) -> float:
    """Such that at most the share is at or over it: halfway between the last that may be and the first that may not."""
    order = np.sort(scores)[::-1]
    most = math.floor(target * len(order))
    first_below = float(order[most]) if most < len(order) else 0.0
    last_over = min((float(score) for score in order[:most] if score > first_below), default=1.0)
    middle = (first_below + last_over) / 2
    # Rounding up keeps it above those that must stay below.
    return min(1.0, math.ceil(middle * 1e6) / 1e6)


def _upper(over: int, count: int) -> float:
    """Wilson's bound."""
    share, z2 = over / count, _Z95 * _Z95
    middle = share + z2 / (2 * count)
    return min(1.0, (middle + _Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))) / (1 + z2 / count))


def _with(platt: Platt | None, score: float) -> float:
    if platt is None:
        return score
    point = platt.slope * log_odds(score) + platt.intercept
    return 1 / (1 + math.exp(-min(max(point, -60.0), 60.0)))


def _platt(harmless: Sequence[float], attacks: Sequence[float], model: ModelSettings, notes: list[str]) -> Platt | None:
    """The line through log-odds that makes scores chances, at the mix of the labels (Platt, with his targets, by Newton's steps)."""
    if model.path is None or not Path(model.path).is_dir():
        notes.append("the model that ships is calibrated already: labels only say what is found")
        return None
    if min(len(harmless), len(attacks)) < _LEAST_LABELLED:
        notes.append(
            f"no calibration: it needs {_LEAST_LABELLED} labelled texts of each kind, there are {len(attacks)} attacks and {len(harmless)} others"
        )
        return None
    x = np.array([log_odds(score) for score in (*harmless, *attacks)])
    high, low = (len(attacks) + 1) / (len(attacks) + 2), 1 / (len(harmless) + 2)
    y = np.array([low] * len(harmless) + [high] * len(attacks))
    rows = np.stack([x, np.ones_like(x)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-np.clip(rows @ line, -60, 60)))
        slope = rows.T @ (chance - y) + 1e-6 * line
        curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + 1e-6 * np.eye(2)
        step = np.clip(np.linalg.solve(curve, slope), -1, 1)
        line = line - step
        if float(np.abs(step).max()) < 1e-9:
            break
    if not 0 < line[0] <= 100 or abs(line[1]) > 100:
        notes.append("no calibration: what the model says and what the labels say do not go together")
        return None
    return Platt(slope=round(float(line[0]), 4), intercept=round(float(line[1]), 4))


def configuration(made: Calibration, model: ModelSettings) -> str:
    """The lines of the configuration that use it."""
    lines = ["security:", "  prompt_injection:", "    model:"]
    if model.path is not None:
        lines.append(f"      path: {json.dumps(model.path, ensure_ascii=False)}")
    lines.append(f"      confidence_threshold: {made.threshold:.6g}")
    if made.platt is not None:
        lines.append(f"      platt: {{slope: {made.platt.slope}, intercept: {made.platt.intercept}}}")
    return "\n".join(lines)
