"""What `--format` of a run may be."""

from __future__ import annotations

from enum import StrEnum


class RunFormat(StrEnum):
    """Table and jsonl have a line for each exchange when it has ended; events are told as they happen."""

    TABLE = "table"
    JSONL = "jsonl"
    EVENTS = "events"
    NONE = "none"
