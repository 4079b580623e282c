"""LLMSec Trace, the tap: from captured bytes to typed exchanges with language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsec_tap.model import Exchange, Process, Usage

__all__ = ["Exchange", "Process", "Usage", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The record types as they are asked for: a capture has its probes in place before it loads them."""
    if name in __all__:
        from llmsec_tap import model  # noqa: PLC0415 - that is the point

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
