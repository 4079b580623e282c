"""Which tool call a streamed piece belongs to, from all that the stream has said, not from the piece alone.

Servers number calls by index, tell them apart by id, do both, or neither: all at index 0, an index on the first piece only, another id on
every piece, whole calls one after the other. So a piece is of the call with its id; else of the call at its index; else of the latest
one; and a piece that names a function begins a call where it cannot be more of one that is there.
"""

from __future__ import annotations

from llmsec_tap.dialects.base import NotJSON, parse_json
from llmsec_tap.dialects.draft import Draft
from llmsec_tap.limits import MAX_TOOL_CALLS

# Looks at whether arguments are whole: each costs as much as they are long.
_MAX_LOOKS = 1024
_MAX_LOOK_CHARS = 65_536


class Calls:
    """The calls of one answer. Keys are numbers in the order in which calls begin, over all choices."""

    __slots__ = ("_at_index", "_by_id", "_draft", "_id_of", "_latest", "_looks", "_next")

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._by_id: dict[tuple[int, str], int] = {}
        self._id_of: dict[int, str] = {}
        self._at_index: dict[tuple[int, int], int] = {}
        self._latest: dict[int, int] = {}  # by choice
        self._looks = 0
        self._next = 0

    def key(self, choice: int, *, index: int | None, id: str | None, name: str | None, arguments: str | None = None) -> int:  # noqa: A002 - the wire's own name
        """The key under which the draft keeps the call of this piece."""
        key = self._by_id.get((choice, id)) if id else None
        if key is None:
            key = self._at_index.get((choice, index)) if index is not None else self._latest.get(choice)
            if key is not None and name and self._is_another(choice, key, id, name, arguments):
                key = None
        if key is None:
            key = self._next
            self._next += 1
        if len(self._id_of) < MAX_TOOL_CALLS:
            if id:
                self._by_id.setdefault((choice, id), key)
                self._id_of.setdefault(key, id)
            if index is not None:
                self._at_index[choice, index] = key
        self._latest[choice] = key
        return key

    def begin(self, choice: int, *, index: int | None, id: str | None) -> int:  # noqa: A002
        """The key of a call that an event of its own begins."""
        if not (id and (choice, id) in self._by_id):
            self._at_index.pop((choice, index if index is not None else -1), None)
            self._latest.pop(choice, None)
        return self.key(choice, index=index, id=id, name=None)

    def _is_another(self, choice: int, key: int, id: str | None, name: str, arguments: str | None) -> bool:  # noqa: A002
        """Whether a piece with a name begins another call than the one at its place."""
        known = self._id_of.get(key)
        if id and known:
            return True  # the same id would have been found
        chosen = self._draft.choices.get(choice)
        call = chosen.tool_calls.get(key) if chosen is not None else None
        if call is None or call.name is None:
            return False
        if id and not known:
            return bool(call.arguments)
        if name != call.name:
            return True
        return not (arguments or "").strip() or (arguments or "").lstrip().startswith("{") if self._is_whole(str(call.arguments)) else False

    def _is_whole(self, arguments: str) -> bool:
        self._looks += 1
        if self._looks > _MAX_LOOKS or len(arguments) > _MAX_LOOK_CHARS or not arguments.rstrip().endswith("}"):
            return False
        try:
            return isinstance(parse_json(arguments.encode("utf-8", "replace")), dict)
        except NotJSON:
            return False
