"""Checks of personal identifiers: check digits, public suffixes, phone plans. All offline, from what packages ship."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from llmsec_analyzer.recognizers.validators import VALIDATORS, Validator

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList  # noqa: PLC0415 - 10 ms and a few MB, only where a name is met

    return PublicSuffixList(accept_unknown=False, only_icann=True)


# For examples and tests only (RFC 2606, RFC 6761): used in every made-up text, so an address there still counts as one.
_RESERVED = frozenset(("example", "test", "invalid", "localhost"))
# Top-level domains that are far more often the end of a file name or of a method call than of a host.
_FILE_ENDINGS = frozenset(
    [
        "py",
        "md",
        "sh",
        "rs",
        "pl",
        "ai",
        "js",
        "ts",
        "cc",
        "so",
        "mk",
        "ps",
        "st",
        "mo",
        "gz",
        "zip",
        "mov",
        "py",
        "app",
        "foundation",
        "bz",
        "ml",
        "in",
        "is",
        "as",
        "at",
        "it",
        "no",
        "to",
        "so",
        "my",
        "me",
        "do",
        "id",
        "be",
        "am",
        "by",
        "de",
        "la",
        "pm",
        "name",
        "info",
        "call",
        "map",
        "page",
        "java",
        "bar",
        "box",
        "run",
        "new",
        "zone",
        "cab",
        "cat",
        "now",
    ]
)


def domain_is_public(name: str) -> bool:
    """Whether a registry gives out names like this one."""
    name = name.lower().rstrip(".")
    if name.rpartition(".")[2] in _RESERVED:
        return "." in name
    return "." in name and _suffixes().publicsuffix(name) is not None


def email(value: str) -> bool:
    """RFC 5321's lengths, no dots where none may be, and a domain under a public suffix."""
    local, _, domain = value.rpartition("@")
    if local == "git":  # the address of a repository over SSH
        return False
    if not local or len(local) > 64 or len(domain) > 253 or ".." in value or local.startswith(".") or local.endswith("."):
        return False
    labels = domain.split(".")
    if any(not label or len(label) > 63 or label.startswith("-") or label.endswith("-") for label in labels):
        return False
    return domain_is_public(domain)


def domain(value: str) -> bool:
    labels = value.lower().split(".")
    if labels[-1] in _FILE_ENDINGS and not (len(labels) > 2 and labels[0] in ("www", "mail", "api", "docs", "blog", "app")):
        return False
    if len(labels[0]) < 2 or any(label.startswith("-") or label.endswith("-") for label in labels):
        return False
    # `Done.Next` and `self.Name`: names are written in one case, sentences and code are not.
    if value != value.lower() and value != value.upper():
        return False
    return _suffixes().privatesuffix(value.lower()) is not None or labels[-1] in _RESERVED


def url(value: str) -> bool:
    host = value.split("://", 1)[1].split("/", 1)[0].split("?", 1)[0].rpartition("@")[2]
    host = host.rsplit(":", 1)[0] if not host.startswith("[") else host
    return "." in host or host == "localhost"


def public_host(value: str) -> bool:
    """A web address under a public suffix: neither an IP address nor a name of one's own network."""
    host = value.split("://", 1)[1].split("/", 1)[0].split("?", 1)[0].rpartition("@")[2].split(":", 1)[0]
    return not host.rpartition(".")[2].isdigit() and domain_is_public(host)


def public_ip(value: str) -> bool:
    """Loopback, masks, broadcast and the unspecified address say nothing about anyone. A network is `address/bits`."""
    host, _, bits = value.partition("/")
    address = ipaddress.ip_address(host)
    octets = host.split(".")
    if address.is_loopback or address.is_unspecified or octets[0] in ("0", "255"):
        return False
    return bool(bits) or octets[1:] != ["0", "0", "0"]


def ipv6(value: str) -> bool:
    if value.count(":") < 2:
        return False
    value = value.partition("/")[0]
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified) and len(value) >= 6 and any(char.isdigit() for char in value)


def mac(value: str) -> bool:
    digits = re.sub("[^0-9a-f]", "", value.lower())
    return len(digits) in (12, 16) and len(set(digits)) > 1


def card_test_range(value: str) -> bool | str:
    """Payment providers take the numbers of their manuals from ranges that no bank gives out."""
    digits = "".join(char for char in value if char.isdigit())
    if digits.startswith("400000") and len(digits) == 16:
        return "a number of a range for tests, which no bank gives out"
    return True


def card_not_repeated(value: str) -> bool:
    return len({char for char in value if char.isdigit()}) > 1


def iban(value: str) -> bool:
    """Length by country and mod 97 (ISO 13616); checks that single countries add are left out, many banks' own fail them."""
    module = importlib.import_module("stdnum.iban")
    return bool(module.is_valid(value.replace(".", ""), check_country=False))


def bitcoin(value: str) -> bool:
    return bool(importlib.import_module("stdnum.bitcoin").is_valid(value))


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58_checksum(value: str) -> bool:
    """A byte for the network, 20 bytes and the first four of their double SHA-256: Litecoin, Dogecoin, Dash, Tron."""
    number = 0
    for char in value:
        number = number * 58 + _BASE58.index(char)
    if number >= 1 << 200:
        return False
    raw = number.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


def phone_length(value: str) -> bool:
    """7 to 15 digits (E.164), an extension not counted, and not all alike."""
    number = re.split(r"x|ext|#", value)[0]
    digits = [char for char in number if char.isdigit()]
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2


def phone(value: str) -> bool:
    """A number that the country's plan can hold (`phonenumbers`); needs the international form."""
    import phonenumbers  # noqa: PLC0415 - 0.2 s

    text = re.split(r"x|ext|#", value)[0]
    try:
        number = phonenumbers.parse("+" + text[2:] if text.startswith("00") else text, None)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_possible_number(number)


def phone_national(value: str) -> bool:
    """9 to 11 digits with an area code, in groups that do not count up (`01 02 03 04 05`), and no year in them that makes it a date."""
    digits = "".join(char for char in value if char.isdigit())
    groups = re.findall(r"[0-9]+", value)
    if not 9 <= len(digits) <= 11 or len(set(digits)) < 4:
        return False
    if {len(group) for group in groups} == {2} and groups == sorted(groups):
        return False
    return len(groups) > 4 or not all(re.fullmatch(r"(?:19|20)[0-9]{2}|[0-3]?[0-9]", group) for group in groups)


def not_date(value: str) -> bool:
    if re.fullmatch(r"(?:19|20)\d\d[-. ]?[01]\d[-. ]?[0-3]\d(?:[-. ]?\d{2,6})?|[0-3]?\d[-. ][01]?\d[-. ](?:19|20)\d\d", value):
        return False
    return re.fullmatch(r"\d+\.\d+", value) is None


def not_ip(value: str) -> bool:
    return re.fullmatch(r"\d{1,3}(?:\.\d{1,3}){3}", value) is None


def document_length(value: str) -> bool:
    return 7 <= len(value) <= 9 and sum(char.isdigit() for char in value) >= 4


def de_tax_id(value: str) -> bool:
    """ISO 7064 mod 11,10 over eleven digits, with a digit that returns among the first ten; unissued forms still look the same."""
    digits = "".join(char for char in value if char.isdigit())
    if len(digits) != 11 or digits[0] == "0":
        return False
    return len(set(digits[:10])) < 10


def es_nif(value: str) -> bool:
    return bool(importlib.import_module("stdnum.es.nif").is_valid(value.replace(".", "")))


def cn_resident_id(value: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(value, weights, strict=False))
    return "10X98765432"[total % 11] == value[-1].upper()


def in_pan(value: str) -> bool:
    return value[5:9] != "0000"


def sg_nric(value: str) -> bool:
    """The check letter of Singapore's NRIC and FIN."""
    total = sum(int(digit) * weight for digit, weight in zip(value[1:8], (2, 7, 6, 5, 4, 3, 2), strict=True))
    total += {"S": 0, "F": 0, "T": 4, "G": 4, "M": 3}[value[0]]
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK", "M": "XWUTRQPNJLK"}[value[0]]
    place = total % 11
    return letters[10 - place if value[0] == "M" else place] == value[8]


def au_medicare(value: str) -> bool:
    digits = [int(char) for char in value if char.isdigit()]
    return len(digits) >= 10 and sum(d * w for d, w in zip(digits, (1, 3, 7, 9, 1, 3, 7, 9), strict=False)) % 10 == digits[8]


_OWN: dict[str, Validator] = {
    "email": email,
    "domain": domain,
    "url": url,
    "public_ip": public_ip,
    "ipv6": ipv6,
    "mac": mac,
    "card_not_repeated": card_not_repeated,
    "card_test_range": card_test_range,
    "base58_checksum": base58_checksum,
    "phone_national": phone_national,
    "public_host": public_host,
    "iban": iban,
    "bitcoin": bitcoin,
    "phone": phone,
    "phone_length": phone_length,
    "not_date": not_date,
    "not_ip": not_ip,
    "document_length": document_length,
    "de_tax_id": de_tax_id,
    "es_nif": es_nif,
    "cn_resident_id": cn_resident_id,
    "in_pan": in_pan,
    "sg_nric": sg_nric,
    "au_medicare": au_medicare,
}


def known_validators() -> list[str]:
    return sorted((*VALIDATORS, *_OWN))


def validator(name: str) -> Validator:
    """The check of that name; `stdnum:se.personnummer` is the module of python-stdnum. KeyError where there is none of ours."""
    if name.startswith("stdnum:"):
        return _of_stdnum(name.removeprefix("stdnum:"))
    own = _OWN.get(name)
    return own if own is not None else VALIDATORS[name]


def is_known_validator(name: str) -> bool:
    if not name.startswith("stdnum:"):
        return name in _OWN or name in VALIDATORS
    try:
        return importlib.util.find_spec(name.replace(":", ".")) is not None
    except ModuleNotFoundError:
        return False


def _of_stdnum(name: str) -> Validator:
    check: list[Callable[[str], bool]] = []

    def valid(value: str) -> bool:
        if not check:  # imported at the first candidate: there are eighty of them
            check.append(importlib.import_module("stdnum." + name).is_valid)
        return bool(check[0](value)) and len({char for char in value if char.isdigit()}) > 1

    return valid
