"""The design's clients for an application that fails over by itself: both are OpenAI's asynchronous client, recorded."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

from llmsec_trace.config import InstrumentationConfig
from llmsec_trace.instrumenting import instrument


class LLMSecClient(AsyncOpenAI):
    """Takes what AsyncOpenAI takes, and how it is recorded (`config`; None: as the environment says). Raises ConfigError as `instrument`."""

    def __init__(self, *, config: InstrumentationConfig | None = None, **options: Any) -> None:
        super().__init__(**options)
        instrument(self, config)


class OpenAIFallbackClient(LLMSecClient):
    """The way that is taken when the first one is down. It differs in nothing but its name, which tells the two apart in code."""
