"""Every dialect that is known, in one list. A new provider is one file and one line here."""

from __future__ import annotations

from typing import Final

from llmsec_tap.providers.auxiliary import auxiliary
from llmsec_tap.providers.base import JSON, Dialect, RequestView, ResponseView
from llmsec_tap.providers.identity import identify
from llmsec_tap.providers.openai_chat import OpenAIChat
from llmsec_tap.providers.openai_completions import MistralFIM, OpenAICompletions, OpenAIEmbeddings

__all__ = ["DIALECTS", "auxiliary", "by_api", "classify", "classify_response", "identify"]

# Of two equal claims the earlier dialect has it.
DIALECTS: Final[tuple[Dialect, ...]] = (
    OpenAIChat(),
    OpenAICompletions(),
    MistralFIM(),
    OpenAIEmbeddings(),
)

_BY_API: Final[dict[str, Dialect]] = {dialect.api: dialect for dialect in DIALECTS}


def by_api(api: str) -> Dialect | None:
    return _BY_API.get(api)


def classify(request: RequestView) -> Dialect | None:
    """The dialect that claims a request most surely, once its head and body are known."""
    best: Dialect | None = None
    surest = 0
    for dialect in DIALECTS:
        claim = dialect.claims(request)
        if claim > surest:
            best, surest = dialect, claim
    return best


def classify_response(response: ResponseView, body: JSON) -> Dialect | None:
    """The dialect of an answer whose request was not captured: `body` is the whole body, or the data of a stream's first event."""
    best: Dialect | None = None
    surest = 0
    for dialect in DIALECTS:
        claim = dialect.recognises(response, body)
        if claim > surest:
            best, surest = dialect, claim
    return best
