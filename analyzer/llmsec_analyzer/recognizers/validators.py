"""Named checks that rules refer to. Each takes the value and answers True or False, a sentence (a known harmless example), or a
number: the confidence that the value has earned.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable

Validator = Callable[[str], bool | str | float]

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def entropy(value: str) -> float:
    """Shannon entropy in bits a character."""
    if not value:
        return 0.0
    size = len(value)
    return -sum(count / size * math.log2(count / size) for count in Counter(value).values())


def luhn(value: str) -> bool:
    digits = [int(char) for char in value if char.isascii() and char.isdigit()]
    total = 0
    for place, digit in enumerate(reversed(digits)):
        if place % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return len(digits) > 1 and total % 10 == 0


def ssn(value: str) -> bool:
    """Areas, groups and numbers that the US authority never gives out are no SSN (SSA, randomisation of 2011)."""
    digits = "".join(char for char in value if char.isdigit())
    return len(digits) == 9 and digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def jwt(value: str) -> bool:
    """The first part is a JSON object that names an algorithm."""
    head = value.split(".", 1)[0]
    try:
        decoded = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, binascii.Error):
        return False
    return isinstance(decoded, dict) and ("alg" in decoded or "enc" in decoded or "typ" in decoded)


def github_checksum(value: str) -> float:
    """The last six characters of GitHub's and npm's tokens are the CRC32 of the rest, in base 62. One that fails it is made up, or cut."""
    body = value.split("_", 1)[-1]
    number, text = zlib.crc32(body[:-6].encode("ascii", "replace")), ""
    while number:
        number, rest = divmod(number, 62)
        text = _BASE62[rest] + text
    return 0.99 if body[-6:] == text.rjust(6, "0") else 0.92


def nkey_checksum(value: str) -> float:
    """A NATS seed is base 32, and its last two bytes are the CRC16 (XMODEM) of the others, low byte first."""
    raw = base64.b32decode(value + "=" * (-len(value) % 8))
    return 0.99 if binascii.crc_hqx(raw[:-2], 0) == int.from_bytes(raw[-2:], "little") else 0.7


def aws_key_id(value: str) -> bool:
    """Keys issued since 2019 are base 32 after their prefix."""
    return re.fullmatch(r"[A-Z]{4}[A-Z0-9]{16}", value) is not None


def mixed(value: str) -> bool:
    """Letters and digits both: words and plain numbers are no tokens."""
    return any(char.isdigit() for char in value) and any(char.isalpha() for char in value)


def hex_uniform(value: str) -> bool:
    """Hexadecimal that is not one digit over and over."""
    return len(set(value.lower())) > 5


# Printed in the providers' own manuals, so everybody's copy and nobody's secret.
_DOCUMENTED = {
    "AKIAIOSFODNN7EXAMPLE": "AWS documentation",
    "AKIAI44QH8DHBEXAMPLE": "AWS documentation",
    "ASIAIOSFODNN7EXAMPLE": "AWS documentation",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "AWS documentation",
    "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY": "AWS documentation",
    "sk_test_4eC39HqLyjWDarjtT1zdp7dc": "Stripe documentation",
    "sk_test_BQokikJOvBiI2HlWgH4olfQ2": "Stripe documentation",
    "pk_test_TYooMQauvdEDq54NiTphI7jx": "Stripe documentation",
    "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcBrzbqgy": "Slack documentation",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ."
    "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c": "jwt.io",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==": "Azurite's well-known key",
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==": "Cosmos DB emulator's well-known key",
}
_PLACEHOLDER = re.compile(
    r"(?i)example|xxxx|\*{3}|\.{3}|<[a-z_ -]+>|your[_-]|placeholder|redacted|change[_-]?(?:me|this)|replace[_-]?(?:me|this|with)|dummy|not[_-]?a[_-]?real|not[_-]the|insert[_-]|todo|deadbeef"
    r"|(?:secret|password|token|key)[_-]?(?:here|goes)|my[_-](?:secret|password|api|token|key)|foobar"
    r"|0123456789abcdef0123|abcdefghij(?:klmnop)?|1234567890123|(.)\1{7}"
)


def documented(value: str) -> bool | str:
    """Known examples of manuals stay, as information; placeholders go."""
    known = _DOCUMENTED.get(value)
    if known is not None:
        return f"an example key printed in public documentation ({known})"
    if len(set(value)) < 7:
        return False  # `AKIAXXXXXXXXXXXXXXXX`
    if "EXAMPLE" in value:
        return "an example key: it says so itself"
    return True


_WORD_FOR_SECRET = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|(?:api[-_]?)?key|credentials?)"  # noqa: S105 - a pattern
# The word for a secret where a secret would stand, also behind the word for a user.
_WORD_ONLY = re.compile(
    rf"(?i)(?:(?:my|the|some|test|fake|sample|default|demo|new|old|super|admin|root|db|user(?:name)?|login|me|you|name)[-_.: ]?)?{_WORD_FOR_SECRET}"
)


def not_placeholder(value: str) -> bool:
    return _PLACEHOLDER.search(value) is None and _WORD_ONLY.fullmatch(value) is None


def not_template(value: str) -> bool | str:
    """No variable or placeholder where the password stands; the word for one is information."""
    password = value.rsplit("@", 1)[0].rpartition(":")[2]
    if _WORD_ONLY.fullmatch(password):
        return "the word for a password stands where one would"
    return bool(password) and re.search(r"^[<\[{$%*]|^x+$|^\.+$|^\*+$|\$\{|\{\{", password) is None


def has_digit(value: str) -> bool:
    return any(char.isdigit() for char in value)


def basic_credentials(value: str) -> bool:
    """Base 64 of `user:password`."""
    try:
        plain = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode("utf-8")
    except (ValueError, binascii.Error):
        return False
    return ":" in plain and plain.isprintable()


VALIDATORS: dict[str, Validator] = {
    "luhn": luhn,
    "ssn": ssn,
    "jwt": jwt,
    "github_checksum": github_checksum,
    "nkey_checksum": nkey_checksum,
    "aws_key_id": aws_key_id,
    "mixed": mixed,
    "hex_uniform": hex_uniform,
    "documented": documented,
    "not_placeholder": not_placeholder,
    "not_template": not_template,
    "has_digit": has_digit,
    "basic_credentials": basic_credentials,
}
