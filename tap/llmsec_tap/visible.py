"""Text for a terminal. Captured content is hostile: an escape sequence in an answer must not reach the reader's terminal."""

from __future__ import annotations

import re

# C0 and C1 controls, DEL, line and paragraph separators, halves of surrogate pairs, and what shows as nothing and hides things
# in plain sight: Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties, 15.1) with all marks that change the direction of
# what follows, fillers, joiners, variation selectors and tags, and annotations (U+FFF9 to U+FFFB). A test holds this table
# against Python's own of format characters.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, *, keep_lines: bool = False) -> str:
    """The text with every character that could steer a terminal written as an escape; `keep_lines` keeps newlines and tabs."""

    def escaped(found: re.Match[str]) -> str:
        char = found[0]
        if keep_lines and char in "\n\t":
            return char
        if char in _NAMED:
            return _NAMED[char]
        code = ord(char)
        if code < 0x100:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _UNSAFE.sub(escaped, text)


def json_visible(line: str) -> str:
    """A line of JSON with the same characters as JSON escapes: the same value, harmless on a terminal."""

    def escaped(found: re.Match[str]) -> str:
        units = found[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return _UNSAFE.sub(escaped, line)
