"""How wide text is on a terminal, and text made to fit. What makes it harmless is the tap's (visible.py)."""

from __future__ import annotations

import unicodedata

from llmsec_tap.visible import json_visible, visible

__all__ = ["cut", "json_visible", "pad", "visible", "width"]


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
