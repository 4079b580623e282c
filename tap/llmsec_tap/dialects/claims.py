"""How sure a dialect is of a request or an answer, on one scale from 0 (not its own) to 100.

The rule: of two dialects that may meet in one message, the one whose evidence is rarer claims more; of equal claims the earlier in
`registry.DIALECTS` has it. A route is *own* where only this API has it, *shared* where several APIs of models have it
(`/completions`, `/embed`), *generic* where any web service may have it (`/generate`, `/chat`, `/messages`). A *shape* is what the API
demands of a body, a *field* is a name that hardly any other API has.
"""

from __future__ import annotations

from typing import Final

# Requests
OWN_ROUTE: Final = 95
ROUTE_AND_SHAPE: Final = 90
ROUTE_AND_FIELD: Final = 85  # or a header of this API's own
SHARED_ROUTE_AND_SHAPE: Final = 80
SHARED_ROUTE_AND_FIELD: Final = 75
ROUTE: Final = 70  # a body that was lost, or cannot be read, may have any shape
SHARED_ROUTE_AND_HINT: Final = 60
SHARED_ROUTE: Final = 50
GENERIC_ROUTE_AND_FIELD: Final = 45
GENERIC_ROUTE_AND_SHAPE: Final = 40
GENERIC_ROUTE_AND_PROMPT: Final = 35
GENERIC_ROUTE: Final = 30
FAINT: Final = 20  # a shape on any route, or a route without its shape: a non-inference call takes precedence (identity/classify.py)

RESTS_ON_ROUTE: Final = SHARED_ROUTE_AND_HINT
"""From here on the path decides: another reading of the same path is not looked for."""

# Answers whose request was not captured
OWN_HEADER: Final = 95
NAMES_ITSELF: Final = 90  # a type or object name of this API
OWN_FIELDS: Final = 85
LIKELY_FIELDS: Final = 80
SOME_FIELDS: Final = 70
FEW_FIELDS: Final = 60
LONE_FIELD: Final = 30
