"""One pass over bytes that says where something may begin: all keywords of all rules, and a few classes of characters.

Two engines with the same answer. Hyperscan where its wheel exists; elsewhere `ahocorasick_rs` for the keywords and
google-re2 for the classes. A hit is (trigger number, end of the hit in bytes). Both report every keyword hit; of a class
they may report different ones of the hits inside one run of its characters, which no recognizer tells apart, because a
recognizer of a class widens each hit to the whole run and looks at a run once.

Streams are scanned block by block with the last few bytes carried over, rather than in hyperscan's stream mode: one
code path for both engines, no state in C that must outlive a Python callback, and at 20 bytes a delta the same cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from llmsec_tap.errors import ConfigError

# Bounded length, so that what is carried over between blocks is bounded too.
CLASSES: Final[dict[str, str]] = {
    "digits": r"[0-9][0-9.()/ -]{0,2}[0-9][0-9.()/ -]{0,2}[0-9]",
    "at": r"[A-Za-z0-9_]@[A-Za-z0-9\x80-\xff]",
    "hex_colon": r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:|::[0-9A-Fa-f]",
    "dotted_name": r"[A-Za-z0-9]\.[A-Za-z]{2}",
    "iban": r"[A-Za-z][A-Za-z][0-9][0-9]",
    "long_token": r"[A-Za-z0-9_+/-]{24}",
    "tags": r"\xf3\xa0[\x80\x81][\x80-\xbf]",  # Unicode tag characters, U+E0000 to U+E007F
}
# Keywords longer than this are refused by the rules' check; the classes above are shorter.
MAX_KEYWORD_BYTES: Final = 48
CARRY: Final = MAX_KEYWORD_BYTES - 1

# Of the hits inside one run of a class, one in so many bytes is kept.
RUN_STEP: Final = 24

Hits = list[tuple[int, int]]


class TriggerIndex:
    """`hits(data)`: all hits in `data`, in order of their end. Keywords match without regard to ASCII case."""

    def __init__(self, keywords: Sequence[bytes], classes: Sequence[str], engine: str = "auto") -> None:
        self.keywords = list(keywords)
        self.classes = list(classes)
        self.engine = _available(engine)
        self.hits: Callable[[bytes], Hits]
        if not keywords and not classes:  # every rule is switched off; hyperscan takes no empty list
            self.hits = lambda _: []
        elif self.engine == "hyperscan":
            self.hits = _hyperscan(self.keywords, self.classes)
        else:
            self.hits = _portable(self.keywords, self.classes)


def _available(engine: str) -> str:
    if engine == "portable":
        return engine
    try:
        import hyperscan  # noqa: F401, PLC0415
    except ImportError:
        if engine == "hyperscan":
            raise ConfigError("the hyperscan engine is not installed here", "use the portable engine, or pip install hyperscan") from None
        return "portable"
    return "hyperscan"


def _hyperscan(keywords: list[bytes], classes: list[str]) -> Callable[[bytes], Hits]:
    import hyperscan  # noqa: PLC0415

    expressions = [_escaped(word) for word in keywords] + [CLASSES[name].encode() for name in classes]
    flags = [hyperscan.HS_FLAG_CASELESS] * len(keywords) + [0] * len(classes)
    scan = _compiled(tuple(expressions), tuple(flags)).scan
    found: Hits = []
    append = found.append
    first_class = len(keywords)
    nowhere = [-RUN_STEP - 1] * len(classes)
    last, kept = list(nowhere), list(nowhere)

    def report(number: int, _start: int, end: int, _flags: int, _context: object) -> None:
        # A long run of a class hits at every byte of it.
        which = number - first_class
        if which >= 0:
            if end - last[which] <= 2 and end - kept[which] < RUN_STEP:
                last[which] = end
                return
            last[which] = kept[which] = end
        append((number, end))

    def hits(data: bytes) -> Hits:
        last[:] = kept[:] = nowhere
        scan(data, match_event_handler=report)
        if not found:
            return found
        ordered = sorted(found, key=_by_end)
        found.clear()
        return ordered

    return hits


@lru_cache(maxsize=8)  # plans of the same rules are made several times, and compiling takes up to a second
def _compiled(expressions: tuple[bytes, ...], flags: tuple[int, ...]) -> Any:
    import hyperscan  # noqa: PLC0415

    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=list(expressions), ids=list(range(len(expressions))), flags=list(flags))
    return database


def _by_end(hit: tuple[int, int]) -> tuple[int, int]:
    return hit[1], hit[0]


def _escaped(word: bytes) -> bytes:
    return b"".join(
        b"\\x%02x" % byte if not (48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122) else bytes((byte,)) for byte in word
    )


def _portable(keywords: list[bytes], classes: list[str]) -> Callable[[bytes], Hits]:
    import ahocorasick_rs  # noqa: PLC0415

    automaton = ahocorasick_rs.BytesAhoCorasick([word.lower() for word in keywords])
    # Python's own `re`: bounded character classes without nesting, so linear; and it takes bytes that are not UTF-8.
    patterns = [(len(keywords) + number, re.compile(CLASSES[name].encode())) for number, name in enumerate(classes)]
    find = automaton.find_matches_as_indexes

    def hits(data: bytes) -> Hits:
        found: Hits = [(number, end) for number, _, end in find(data.lower(), overlapping=True)]
        for number, pattern in patterns:
            found += [(number, match.end()) for match in pattern.finditer(data)]
        return sorted(found, key=_by_end) if found else found

    return hits
