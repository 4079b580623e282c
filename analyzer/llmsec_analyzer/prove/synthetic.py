"""Examples of credentials that are plainly made up: `ghp_<alnum:36>` becomes characters drawn by a seed of the text itself.

A rule file then shows the shape of a token and never a token, and scanners of this repository have nothing to report.
"""

from __future__ import annotations

import random
import re
import string

_ALPHABETS = {
    "alnum": string.ascii_letters + string.digits,
    "lower": string.ascii_lowercase + string.digits,
    "upper": string.ascii_uppercase + string.digits,
    "base32": string.ascii_uppercase + "234567",
    "letters": string.ascii_letters,
    "digits": string.digits,
    "hex": "0123456789abcdef",
    "HEX": "0123456789ABCDEF",
    "b64": string.ascii_letters + string.digits + "+/",
    "url": string.ascii_letters + string.digits + "_-",
}
_TEMPLATE = re.compile(r"<(" + "|".join(_ALPHABETS) + r"):(\d{1,4})>")


def expand(example: str) -> str:
    """The example with each template replaced; the same example always gives the same text."""
    draw = random.Random(example)  # noqa: S311 - made-up text, not a key

    def characters(found: re.Match[str]) -> str:
        return "".join(draw.choices(_ALPHABETS[found[1]], k=int(found[2])))

    return _TEMPLATE.sub(characters, example)
