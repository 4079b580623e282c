"""What begins a word though a letter stands before it: arguments of tool calls are JSON, terminals write colours, addresses write %3D."""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = r"\\[nrtbf]|\\u00[0-9a-fA-F]{2}|\x1b\[[0-9;]{0,8}m"
_ANY: Final = rf"{_ESCAPE}|%[0-9A-Fa-f]{{2}}"
LONGEST: Final = 11
ESCAPES: Final = re.compile(_ANY)
# In addresses of mail % is a letter like others.
ESCAPES_BUT_PERCENT: Final = re.compile(_ESCAPE)
_AT_END: Final = re.compile(f"(?:{_ANY})$")


def before(text: str) -> re.Match[str] | None:
    """The escape that a text ends in. Its last LONGEST characters are enough."""
    return _AT_END.search(text) if "\\" in text or "%" in text or "\x1b" in text else None


def blanked(text: str, escapes: re.Pattern[str] = ESCAPES) -> str:
    """The text, as long as before, with blanks for escapes; the same object where it has none."""
    if "\\" in text or "%" in text or "\x1b" in text:
        return escapes.sub(_blanks, text)
    return text


def _blanks(escape: re.Match[str]) -> str:
    return " " * len(escape[0])
