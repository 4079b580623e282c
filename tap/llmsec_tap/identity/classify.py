"""Which dialect reads a request: the surest claim, unless the call is one that carries no conversation."""

from __future__ import annotations

from llmsec_tap.dialects import claims
from llmsec_tap.dialects.base import Dialect, RequestView
from llmsec_tap.dialects.registry import surest_claim
from llmsec_tap.identity.non_inference import auxiliary


def classify(request: RequestView) -> Dialect | None:
    """The dialect of a request whose head and body are known, or None."""
    dialect, claim = surest_claim(request)
    if claim < claims.GENERIC_ROUTE and auxiliary(request, None) is not None:
        return None  # a token count or a rerank may carry messages too
    return dialect
