"""LLMSec Trace, the tap: from captured bytes to typed exchanges with language models."""

from llmsec_tap.model import Exchange, Process, Usage

__all__ = ["Exchange", "Process", "Usage", "__version__"]
__version__ = "0.1.0"
