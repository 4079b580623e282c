"""Token counts where a server states none. They are estimates: templates add tokens that the wire does not show.

By a real tokenizer where there is one: OpenAI's vocabularies come with the `bpe-openai` package, for any model a `tokenizer.json` may be
named. Else by characters per token of the model's family, which `tokenizer` then says: nobody takes it for a count.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from llmsec_tap.errors import ConfigError
from llmsec_tap.exchange.timing import characters_per_token, rate
from llmsec_tap.model import EstimatedUsage, Exchange

Counter = Callable[[str], int]

# Model name -> vocabulary: https://github.com/openai/tiktoken/blob/main/tiktoken/model.py
_FAMILIES = (
    (re.compile(r"(?:^|[/:.])(?:gpt-4o|chatgpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|gpt-oss|o1|o3|o4|codex-mini|computer-use)"), "o200k_base"),
    (re.compile(r"(?:^|[/:.])(?:gpt-4|gpt-3\.5|gpt-35|text-embedding-|davinci-002|babbage-002)"), "cl100k_base"),
    (re.compile(r"(?:^|[/:.])voyage-3"), "voyage3_base"),
)
# What chat templates add: https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken_for_chat_completions
_MADV_PAGEOUT = 21
_TOKENS_PER_MESSAGE, _TOKENS_BEFORE_ANSWER = 4, 3
_ESTIMATED = frozenset(("chat", "text_completion", "generate_content", "embeddings"))


class TokenEstimator:
    """Fills `usage_estimated` of exchanges without a stated usage. Vocabularies are loaded when first needed."""

    def __init__(self, tokenizer_file: str | None = None) -> None:
        self._counters: dict[str, Counter | None] = {}
        self._file: tuple[str, Counter] | None = None
        self._library: tuple[Path, str] | None = None  # where it lies, and how it can be opened
        if tokenizer_file is not None:
            self._file = (Path(tokenizer_file).name, _from_file(tokenizer_file))

    def keep_open(self) -> None:
        """Open the vocabularies' library now: later this process may have another user, who may not look where it lies."""
        if self._library is None and (file := _library()) is not None:
            self._library = (file, f"/proc/self/fd/{os.open(file, os.O_RDONLY | os.O_CLOEXEC)}")

    def estimate(self, exchange: Exchange) -> None:
        usage = exchange.usage
        if exchange.provider is None or exchange.operation not in _ESTIMATED or exchange.status is None or exchange.status >= 400:
            return
        if usage.input_tokens is not None and (usage.output_tokens is not None or exchange.operation == "embeddings"):
            return
        name, count = self._counter(exchange.response_model or exchange.request_model or "")
        estimate = EstimatedUsage(tokenizer=name)
        if usage.input_tokens is None and exchange.request.messages:
            estimate.input_tokens = self._input(exchange, count)
        if usage.output_tokens is None and exchange.operation != "embeddings":
            estimate.output_tokens = sum(
                count(text)
                for message in exchange.response.messages
                for part in message.parts
                for text in (part.content, part.arguments)
                if text
            )
        exchange.usage_estimated = estimate
        if exchange.output_tokens_per_s is None and estimate.output_tokens and exchange.first_token_ns and exchange.ended_ns:
            exchange.output_tokens_per_s = rate(estimate.output_tokens, exchange.first_token_ns, exchange.ended_ns)

    @staticmethod
    def _input(exchange: Exchange, count: Counter) -> int:
        messages = exchange.request.messages
        total = sum(
            count(text) for message in messages for part in message.parts for text in (part.content, part.arguments, part.name) if text
        )
        if exchange.operation == "chat":
            total += _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_BEFORE_ANSWER
        return total

    def _counter(self, model: str) -> tuple[str, Counter]:
        if self._file is not None:
            return self._file
        for pattern, name in _FAMILIES:
            if pattern.search(model):
                if name not in self._counters:
                    if self._library is None and (file := _library()) is not None:
                        self._library = (file, str(file))
                    self._counters[name] = _openai(name, *self._library) if self._library is not None else None
                counter = self._counters[name]
                if counter is not None:
                    return name, counter
        return _by_characters(characters_per_token(model))


def _by_characters(ratio: float) -> tuple[str, Counter]:
    return f"{ratio:g} characters per token", lambda text: math.ceil(len(text) / ratio)


def _library() -> Path | None:
    """The native module of bpe-openai, or None where the package is not installed."""
    package = importlib.util.find_spec("bpe_openai")
    folders = (package.submodule_search_locations or ()) if package is not None else ()
    return next((file for folder in folders for file in Path(folder).glob("_bindings*.so")), None)


def _openai(name: str, file: Path, opened: str) -> Counter:
    """A vocabulary of bpe-openai.

    Its native module is loaded by itself: the package's `__init__` builds every table in Python first, one second and 60 MB
    for what a count never needs.
    """
    loader = importlib.machinery.ExtensionFileLoader("bpe_openai._bindings", opened)
    spec = importlib.util.spec_from_loader("bpe_openai._bindings", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    counter: Counter = module.tokenizer_for_encoding(name).count
    counter("")
    _page_out(file)
    return counter


def _page_out(library: Path) -> None:
    """Give back the pages of a library's constant data: the vocabularies in it are read once, 33 MB that nobody looks at again.

    A page that is wanted after all is read again from the file; kernels before 5.4 know no MADV_PAGEOUT and do nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        mappings = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in mappings:
        if line.endswith(str(library)) and line.split()[1] == "r--p":
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            libc.madvise(start, end - start, _MADV_PAGEOUT)


def _from_file(path: str) -> Counter:
    """A Hugging Face `tokenizer.json`. Raises ConfigError where it, or the library that reads it, is missing."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - 10 MB that few runs need
    except ImportError:
        raise ConfigError("--tokenizer needs the `tokenizers` package", "pip install 'llmsec-trace[tokens]'") from None
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such tokenizer file", "Name a model's tokenizer.json.")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as fault:  # noqa: BLE001 - the library raises bare Exception for every fault
        raise ConfigError(f"{path} is not a tokenizer.json: {fault}", "Name a model's tokenizer.json.") from None

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
