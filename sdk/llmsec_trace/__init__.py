"""Records the calls of this process to language models: `client = instrument(OpenAI())` (docs/sdk.md).

Names are loaded when they are first used, so that importing this package costs an application nothing that it may not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.model import Exchange, Finding
    from llmsec_trace.config import InstrumentationConfig, SecurityConfig, TracingConfig
    from llmsec_trace.destinations.agent import Agent
    from llmsec_trace.destinations.base import Destination, DestinationError
    from llmsec_trace.destinations.callback import Callback
    from llmsec_trace.destinations.folder import Folder
    from llmsec_trace.fallback import LLMSecClient, OpenAIFallbackClient
    from llmsec_trace.instrumenting import Instrumentation, flush, instrument, stats, uninstrument
    from llmsec_trace.policy import PolicyResults, RequestBlocked, SecurityPolicy
    from llmsec_trace.recorder import Examiner, Stats
    from llmsec_trace.trace import TraceContext, get_current_trace, set_metadata, set_tag

_HOMES = {
    "Agent": "destinations.agent",
    "Callback": "destinations.callback",
    "Destination": "destinations.base",
    "DestinationError": "destinations.base",
    "Examiner": "recorder",
    "Folder": "destinations.folder",
    "LLMSecClient": "fallback",
    "OpenAIFallbackClient": "fallback",
    "Instrumentation": "instrumenting",
    "InstrumentationConfig": "config",
    "PolicyResults": "policy",
    "RequestBlocked": "policy",
    "SecurityConfig": "config",
    "SecurityPolicy": "policy",
    "Stats": "recorder",
    "TraceContext": "trace",
    "TracingConfig": "config",
    "flush": "instrumenting",
    "get_current_trace": "trace",
    "instrument": "instrumenting",
    "set_metadata": "trace",
    "set_tag": "trace",
    "stats": "instrumenting",
    "uninstrument": "instrumenting",
}
_TAPS = {"ConfigError": "llmsec_tap.errors", "Exchange": "llmsec_tap.model", "Finding": "llmsec_tap.model"}

__all__ = [
    "Agent",
    "Callback",
    "ConfigError",
    "Destination",
    "DestinationError",
    "Examiner",
    "Exchange",
    "Finding",
    "Folder",
    "Instrumentation",
    "InstrumentationConfig",
    "LLMSecClient",
    "OpenAIFallbackClient",
    "PolicyResults",
    "RequestBlocked",
    "SecurityConfig",
    "SecurityPolicy",
    "Stats",
    "TraceContext",
    "TracingConfig",
    "flush",
    "get_current_trace",
    "instrument",
    "set_metadata",
    "set_tag",
    "stats",
    "uninstrument",
]


def __getattr__(name: str) -> Any:
    home = f"{__name__}.{_HOMES[name]}" if name in _HOMES else _TAPS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
