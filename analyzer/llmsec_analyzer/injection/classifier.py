"""A classifier of the user's own: a sequence classifier in the Hugging Face layout, run by onnxruntime beside or in place of ours.

    folder/ model.onnx or onnx/model.onnx    the graph: input_ids, attention_mask and perhaps token_type_ids in, logits out
            tokenizer.json                   for `tokenizers`
            config.json                      names of its labels (id2label), how many tokens it takes
            tokenizer_config.json            perhaps: model_max_length

Nothing else is read, and nothing is fetched. A text is made ready as for our own model, so that hiding is undone and signs are found, then
cut into windows of tokens that overlap by a quarter; the highest counts. What is too long, or takes too long, is judged in part: windows are
spread evenly from beginning to end, both included, and the verdict says that it is not complete.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from llmsec_analyzer.injection.model import Verdict
from llmsec_analyzer.injection.prepare import Prepared, Preparer
from llmsec_analyzer.settings import ModelSettings
from llmsec_tap.errors import ConfigError

MAX_MODEL_BYTES: Final = 2 << 30
_MAX_TOKENIZER_BYTES: Final = 64 << 20
_MAX_CONFIG_BYTES: Final = 1 << 20
_MAX_LABELS: Final = 1_000
_GRAPHS: Final = ("model.onnx", "onnx/model.onnx")
_SHARE: Final = 4  # a window begins where three quarters of the one before are over
# A token is at most about so many characters where it counts; of longer texts pieces of that size are cut before they become tokens.
_CHARS_A_TOKEN: Final = 6
# Orders are what system prompts are for: as of our own model, in log-odds.
_SYSTEM_OFFSET: Final = 1.5
_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
_INTEGERS: Final = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
# Models whose first two positions are taken: they read two tokens less than they have positions.
_OFFSET_POSITIONS: Final = frozenset(("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer"))
ATTACKS: Final = frozenset(
    (
        *("injection", "prompt_injection", "promptinjection", "injected", "direct_injection", "indirect_injection", "jailbreak", "attack"),
        *("malicious", "unsafe", "harmful", "adversarial", "bad", "label_1", "1", "positive", "true"),
    )
)


class Folder(NamedTuple):
    """What stands in a classifier's folder. `attack`: the labels, by number, that say that a text is one."""

    graph: Path
    tokenizer: Path
    labels: tuple[str, ...]
    attack: frozenset[int]
    tokens: int  # a window, with the marks at both ends
    pad: int
    is_multi_label: bool


def read_folder(folder: Path, settings: ModelSettings) -> Folder:
    """What the files say, without loading the model. Raises ConfigError."""
    graph = next((folder / name for name in _GRAPHS if (folder / name).is_file()), None)
    if graph is None:
        raise ConfigError(
            f"{folder}: has no model.onnx", "export it: optimum-cli export onnx --model NAME --task text-classification FOLDER"
        )
    weights = sum(file.stat().st_size for file in (graph, *graph.parent.glob("*.onnx_data"), *graph.parent.glob("*.onnx.data")))
    if weights > MAX_MODEL_BYTES:
        raise ConfigError(
            f"{graph}: larger than {MAX_MODEL_BYTES >> 30} GiB with its weights", "a base model is 0.3 to 0.8 GB; quantize it"
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigError(f"{folder}: has no tokenizer.json", "save the fast tokenizer beside the model: tokenizer.save_pretrained(FOLDER)")
    if tokenizer.stat().st_size > _MAX_TOKENIZER_BYTES:
        raise ConfigError(f"{tokenizer}: larger than {_MAX_TOKENIZER_BYTES >> 20} MiB")
    config = _json(folder / "config.json", needed=True)
    labels = _labels(config, folder)
    return Folder(
        graph=graph,
        tokenizer=tokenizer,
        labels=labels,
        attack=_attacks(labels, settings.positive_label, folder),
        tokens=_tokens(config, _json(folder / "tokenizer_config.json", needed=False), settings.window_tokens),
        pad=config["pad_token_id"] if isinstance(config.get("pad_token_id"), int) else 0,
        is_multi_label=config.get("problem_type") == "multi_label_classification",
    )


class Classifier:
    """`judge(text, role)`, as of our own model. `threshold` is a half, unless the configuration says what `calibrate` found.

    `clock`: seconds, for the time that one text may take. Takes about the size of its file and some hundred megabytes of memory.
    """

    def __init__(
        self, folder: Path, preparer: Preparer, settings: ModelSettings, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._files = files = read_folder(folder, settings)
        self._settings = settings
        self._preparer = preparer
        self._clock = clock
        self.threshold = 0.5
        self.version = folder.name
        self._session, self._tokenizer = _load(files, settings.threads)
        self._kinds = _inputs(self._session, files.graph)
        rows, self._fixed_tokens = self._session_shape()
        self._fixed_rows, self._batch = rows, rows or settings.batch
        outputs = [output.name for output in self._session.get_outputs()]
        self._output = "logits" if "logits" in outputs else outputs[0]
        self._before, self._after = self._marks()
        tokens = min(files.tokens, self._fixed_tokens or files.tokens)
        self._room = tokens - len(self._before) - len(self._after)
        if self._room < 1:
            raise ConfigError(f"{folder}: takes {tokens} tokens, which is no room for a text", "raise window_tokens, or export it for more")
        self.chars_per_s = self._try()

    def judge(self, text: str, role: str = "user") -> Verdict:
        return self.verdict(self._preparer.prepare(text, role), role)

    def heaviest(self, text: str) -> list[str]:
        return []

    def verdict(self, prepared: Prepared, role: str) -> Verdict:
        text = prepared.normalised.text
        until = self._clock() + self._settings.timeout
        windows, is_whole = self._windows(text)
        best, score, done = windows[0], -1.0, 0
        for at in range(0, len(windows), self._batch):
            if at and self._clock() > until:
                break
            some = windows[at : at + self._batch]
            done += len(some)
            for window, found in zip(some, self._scores([window.ids for window in some]), strict=True):
                if found > score:
                    best, score = window, found
        signs = dict.fromkeys(
            sign for piece in prepared.windows if piece.start < best.end and piece.end > best.start for sign in piece.signs
        )
        start, end = prepared.normalised.span(best.start, best.end, prepared.judged)
        start, end = prepared.place(start), prepared.place(max(start, end - 1)) + (end > start)
        score = calibrated(score, self._settings, _SYSTEM_OFFSET if role in ("system", "developer") else 0.0)
        is_complete = is_whole and done == len(windows) and prepared.scanned == prepared.size
        return Verdict(score, start, end, tuple(signs), tuple(prepared.normalised.kinds), is_complete)

    # --- windows --------------------------------------------------------------------------------------------------------

    def _windows(self, text: str) -> tuple[list[_Window], bool]:
        """Both ends first, then what is between; and whether they are all of the text."""
        most = self._settings.windows
        size = self._room * _CHARS_A_TOKEN
        if len(text) <= most * size:
            found = self._cut(text, 0)
            is_whole = len(found) <= most
            if not is_whole:
                found = [found[(len(found) - 1) * number // max(1, most - 1)] for number in range(most)]
        else:
            begins = [(len(text) - size) * number // max(1, most - 1) for number in range(most)]
            # The end of the last piece is the end of the text.
            found = [self._cut(text[begin : begin + size], begin)[-1 if begin and begin == begins[-1] else 0] for begin in begins]
            is_whole = False
        return [*found[:1], *found[:0:-1]], is_whole

    def _cut(self, text: str, begins: int) -> list[_Window]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ids, offsets, room = encoded.ids, encoded.offsets, self._room
        if not ids:
            return [_Window([], begins, begins + len(text))]
        step = max(1, room - room // _SHARE)
        last = max(0, len(ids) - room)
        starts = [*range(0, last, step), last]
        return [_Window(ids[at : at + room], begins + offsets[at][0], begins + offsets[min(at + room, len(ids)) - 1][1]) for at in starts]

    def _marks(self) -> tuple[list[int], list[int]]:
        """The tokens that the model wants before and after a text."""
        encoded = self._tokenizer.encode("a", add_special_tokens=True)
        inside = [at for at, is_mark in enumerate(encoded.special_tokens_mask) if not is_mark]
        if not inside:
            return [], []
        return encoded.ids[: inside[0]], encoded.ids[inside[-1] + 1 :]

    # --- the graph ------------------------------------------------------------------------------------------------------

    def _session_shape(self) -> tuple[int | None, int | None]:
        """How many rows and tokens it takes at once; None where any number."""
        shape = next(wanted.shape for wanted in self._session.get_inputs() if wanted.name == "input_ids")
        rows, tokens = (size if isinstance(size, int) and size > 0 else None for size in shape)
        return rows, tokens

    def _logits(self, windows: Sequence[Sequence[int]]) -> Any:
        """A row of numbers for each."""
        rows = [[*self._before, *ids, *self._after] for ids in windows]
        count, longest = self._fixed_rows or len(rows), self._fixed_tokens or max(1, *map(len, rows))
        ids = np.full((count, longest), self._files.pad, dtype=np.int64)
        mask = np.zeros((count, longest), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        mask[len(rows) :, 0] = 1  # in rows that only fill the batch something must be there
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feed = {name: values[name].astype(kind, copy=False) for name, kind in self._kinds.items()}
        return np.asarray(self._session.run([self._output], feed)[0])[: len(rows)]

    def _scores(self, windows: Sequence[Sequence[int]]) -> list[float]:
        return [self._score(row) for row in self._logits(windows).astype(np.float64)]

    def _score(self, logits: Any) -> float:
        attack = sorted(self._files.attack)
        if len(logits) == 1 or self._files.is_multi_label:
            chance = max(_logistic(float(logits[number])) for number in (attack if len(logits) > 1 else [0]))
        else:
            powers = np.exp(logits - logits.max())
            chance = float(powers[attack].sum() / powers.sum())
        if not math.isfinite(chance):
            raise ValueError("the classifier's output is no number")
        return chance

    def _try(self) -> float:
        """Judge something once, so that what is wrong shows when it is loaded. Characters a second, of a whole window."""
        graph, labels = self._files.graph, len(self._files.labels)
        window = self._cut("a " * self._room, 0)[0].ids
        started = time.perf_counter()
        try:
            shape = self._logits([window]).shape
        except Exception as fault:  # noqa: BLE001 - onnxruntime's own, of many kinds
            raise ConfigError(
                f"{graph}: fails on a text of {len(window)} tokens ({_line(fault)})",
                "set window_tokens to what it takes, or export it again",
            ) from None
        spent_s = time.perf_counter() - started
        if len(shape) != 2 or shape[1] != labels:
            raise ConfigError(
                f"{graph}: gives {' x '.join(map(str, shape))} numbers for a text, and config.json names {labels} labels",
                "export it for text-classification",
            )
        return len(window) * _CHARS_A_TOKEN / max(spent_s, 1e-6) / 2


class _Window(NamedTuple):
    """Tokens, and the characters that they are."""

    ids: Sequence[int]
    start: int
    end: int


def calibrated(chance: float, settings: ModelSettings, offset: float = 0.0) -> float:
    """The chance as `calibrate` with labels has found it (Platt); as it is without. `offset` is taken off in log-odds."""
    if settings.platt is None and not offset:
        return chance
    point = log_odds(chance)
    if settings.platt is not None:
        point = settings.platt.slope * point + settings.platt.intercept
    return _logistic(point - offset)


def log_odds(chance: float) -> float:
    kept = min(max(chance, 1e-9), 1 - 1e-9)
    return math.log(kept / (1 - kept))


def _logistic(point: float) -> float:
    return 1 / (1 + math.exp(-min(max(point, -60.0), 60.0)))


# --- the files ----------------------------------------------------------------------------------------------------------------


def _inputs(session: Any, graph: Path) -> dict[str, Any]:
    """The type of numbers of each input. Raises ConfigError for a graph that does not take texts."""
    kinds: dict[str, Any] = {}
    for wanted in session.get_inputs():
        if wanted.name not in _INPUTS:
            raise ConfigError(f"{graph}: wants an input {wanted.name!r}, which no text has", f"it may want {', '.join(_INPUTS)}")
        if wanted.type not in _INTEGERS or len(wanted.shape) != 2:
            raise ConfigError(f"{graph}: its input {wanted.name!r} is no table of whole numbers", "export it for text-classification")
        kinds[wanted.name] = _INTEGERS[wanted.type]
    if "input_ids" not in kinds:
        raise ConfigError(f"{graph}: has no input 'input_ids'", "export it for text-classification")
    return kinds


def _load(files: Folder, threads: int) -> tuple[Any, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: its threads would only wait
    try:
        import onnxruntime  # noqa: PLC0415
        import tokenizers  # noqa: PLC0415
    except ImportError as fault:
        raise ConfigError(f"{fault.name} is not installed, and a classifier needs it", "pip install 'llmsec-trace[classifier]'") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(files.tokenizer))
    except Exception as fault:  # noqa: BLE001 - the library raises Exception itself
        raise ConfigError(f"{files.tokenizer}: not a tokenizer ({_line(fault)})", "it may be cut, or of a newer `tokenizers`") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False  # what a long text took is given back
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait for work take none
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(files.graph), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # noqa: BLE001 - the library's own, of many kinds
        missing = "external data" in str(fault).lower() or "model_path must not be empty" in str(fault)
        hint = (
            "its weights stand in a second file (model.onnx_data) that must be beside it" if missing else "it may be cut; export it again"
        )
        raise ConfigError(f"{files.graph}: onnxruntime cannot load it ({_line(fault)})", hint) from None
    return session, tokenizer


def _line(fault: Exception) -> str:
    text = str(fault).strip().splitlines() or [type(fault).__name__]
    return text[0][:160]


def _json(path: Path, *, needed: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as fault:
        if not needed:
            return {}
        raise ConfigError(f"{path}: cannot be read: {fault.strerror}", "it names the labels; it comes with the model") from None
    if len(data) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_CONFIG_BYTES >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not JSON") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value


def _labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """By number. Without names they are LABEL_0, LABEL_1, …"""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        named = {str(number): f"LABEL_{number}" for number in range(count if isinstance(count, int) and 0 < count <= _MAX_LABELS else 2)}
    if not isinstance(named, dict) or not 0 < len(named) <= _MAX_LABELS or set(named) != {str(number) for number in range(len(named))}:
        raise ConfigError(f"{folder}/config.json: id2label does not name labels 0, 1, … in order", "it maps their numbers to names")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _attacks(labels: tuple[str, ...], wanted: str | None, folder: Path) -> frozenset[int]:
    key = "security.prompt_injection.model.positive_label"
    if wanted is not None:
        found = frozenset(number for number, label in enumerate(labels) if label.lower() == wanted.lower())
        if not found:
            raise ConfigError(f"{key}: {folder} has no such label", f"it has {', '.join(labels[:20])}")
        return found
    if len(labels) == 1:
        return frozenset((0,))
    found = frozenset(number for number, label in enumerate(labels) if label.lower().replace(" ", "_").replace("-", "_") in ATTACKS)
    if not found or len(found) == len(labels):
        raise ConfigError(f"{folder}: which label is the attack cannot be told: {', '.join(labels[:20])}", f"name it: {key}")
    return found


def _tokens(config: Mapping[str, Any], tokenizer: Mapping[str, Any], wanted: int) -> int:
    known = [wanted]
    positions, longest = config.get("max_position_embeddings"), tokenizer.get("model_max_length")
    if isinstance(positions, int) and positions > 0:
        known.append(positions - 2 if config.get("model_type") in _OFFSET_POSITIONS else positions)
    if isinstance(longest, int) and longest > 0:  # where it is not known, the file says 1e30
        known.append(longest)
    return min(known)
