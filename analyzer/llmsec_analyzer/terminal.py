"""Text for a terminal. Captured content is hostile: an escape sequence in an answer must not reach the reader's terminal."""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls, DEL, line and paragraph separators, marks that change the direction of what follows, invisible
# tag characters (used to hide instructions in plain sight), and halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
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


def width(text: str) -> int:
    """Terminal columns the (already visible) text takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """At most `columns` wide, an ellipsis where something was left off."""
    if width(text) <= columns:
        return text
    taken = 0
    for index, char in enumerate(text):
        taken += _char_width(char)
        if taken > columns - 1:
            return text[:index] + "…"
    return text


def pad(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space
