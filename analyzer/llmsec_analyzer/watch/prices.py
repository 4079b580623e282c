"""What an exchange costs: list prices by model (prices.yaml), for what the server says it used, or what was estimated."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, cast

import msgspec

from llmsec_analyzer.typed_files import FileError, key, read_struct
from llmsec_analyzer.yaml_files import read_yaml
from llmsec_tap.model import Exchange

BUILTIN: Final = Path(__file__).with_name("prices.yaml")
_PER: Final = 1e-6


class Price(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens. Cached input that has no price of its own costs what input costs."""

    input: Annotated[float, key("read by the model", at_least=0)]
    output: Annotated[float, key("written by the model, with its reasoning", at_least=0)] = 0.0
    cached_input: Annotated[float | None, key("read from the server's cache", at_least=0)] = None
    cache_write: Annotated[float | None, key("read and put into the server's cache", at_least=0)] = None


class PriceList(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    as_of: Annotated[str, key("the day of these prices, YYYY-MM-DD", filled=True)]
    models: Annotated[dict[str, Price], key("by the model's name, without its date")]


def read_prices(path: Path) -> PriceList:
    """Raises ConfigError with every fault of the file."""
    listed, problems, more = read_struct(*read_yaml(path), PriceList)
    if problems:
        raise FileError(str(path), problems, more)
    return cast("PriceList", listed)


def price_list(path: str | None) -> PriceList:
    """Ours, with those of the user's file before them."""
    listed = read_prices(BUILTIN)
    if path is None:
        return listed
    own = read_prices(Path(path))
    return PriceList(as_of=own.as_of, models={**listed.models, **own.models})


class Prices:
    """Made of one list."""

    def __init__(self, listed: PriceList) -> None:
        self.as_of = listed.as_of
        self._models = {name.casefold(): price for name, price in listed.models.items()}
        self._of = lru_cache(4096)(self._look_up)

    def of(self, model: str | None) -> Price | None:
        return self._of(model) if model and len(model) <= 256 else None

    def _look_up(self, model: str) -> Price | None:
        """A name may stand behind a path (`models/`, `accounts/…/`, a region and vendor of Bedrock) and before a date or version."""
        name = model.casefold().rpartition("/")[2]
        for vendor in ("anthropic.", "mistral.", "cohere.", "meta.", "amazon."):
            name = name.rpartition(vendor)[2]
        while name:
            price = self._models.get(name)
            if price is not None:
                return price
            shorter = max(name.rfind("-"), name.rfind("@"), name.rfind(":"))
            # What is cut off is a date, a version or a word for one; a size or a variant has a price of its own, which is not known.
            if shorter < 0 or not (_is_edition(name[shorter + 1 :]) or name[shorter] != "-"):
                return None
            name = name[:shorter]
        return None

    def cost_usd(self, exchange: Exchange) -> float | None:
        """None where the model has no price or no tokens are known."""
        price = self.of(exchange.response_model) or self.of(exchange.request_model)
        if price is None:
            return None
        usage = exchange.usage
        read, written = usage.input_tokens, usage.output_tokens
        if exchange.usage_estimated is not None:
            read = exchange.usage_estimated.input_tokens if read is None else read
            written = exchange.usage_estimated.output_tokens if written is None else written
        if read is None and written is None:
            return None
        read, written = max(0, read or 0), max(0, written or 0)
        cached, kept = max(0, usage.cached_input_tokens or 0), max(0, usage.cache_write_tokens or 0)
        if exchange.provider == "anthropic" or (exchange.api or "").startswith("anthropic"):
            plain = read  # Anthropic counts what is cached beside the input (docs: "Prompt caching", tracking)
        else:
            cached, kept = min(cached, read), 0
            plain = read - cached
        return _PER * (
            plain * price.input
            + cached * (price.input if price.cached_input is None else price.cached_input)
            + kept * (price.input if price.cache_write is None else price.cache_write)
            + written * price.output
        )


def _is_edition(text: str) -> bool:
    """`20250514`, `0613`, `08`, `v1`, `latest`; a single digit is a version with a price of its own."""
    return (text.isdigit() and len(text) > 1) or (text[:1] == "v" and text[1:].isdigit()) or text in ("latest", "preview", "exp")
