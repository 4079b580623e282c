"""What a credential looks like: the forms that vendors give their keys, and words too random to be anything else.

This is for places that hold no content (paths, query values, model names, parameters, error messages), where a wrong hit costs
a readable name and a miss costs a key. Texts of a conversation are content: detection looks there, with better rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from llmsec_tap.plain_names import folded_name

# Names of fields (query, body, header, form) that carry a credential, folded; and parts of names that mark one.
_NAMES: Final = frozenset(
    [
        "key",
        "sig",
        "code",
        "auth",
        "jwt",
        "sas",
        "session",
        "pwd",
        "pass",
        "passwd",
        "passphrase",
        "passcode",
        "bearer",
        "sk",
        "ak",
        "pat",
        "hmac",
        "k",
        "clientid",
        "privatekey",
        "otp",
        "totp",
        "pin",
        "sid",
        "sessionid",
        "phpsessid",
        "jsessionid",
        "ticket",
        "nonce",
        "assertion",
        "refresh",
        "cookie",
        "cookies",
        "awsaccesskeyid",
        "xamzcredential",
        "cred",
        "creds",
        "apitoken",
        "accesskeyid",
        "hash",
        "license",
        "licence",
    ]
)
_PARTS: Final = (
    "apikey", "token", "secret", "signature", "password", "passwd", "passphrase", "credential", "authorization", "privatekey", "accesskey",
    "subscriptionkey", "accountkey", "masterkey", "sharedaccess", "sessionid", "sesskey", "bearer", "authkey", "licensekey", "webhookkey", "cookie",
)  # fmt: skip
# Counts and switches of tokens of text, not tokens of access.
_TEXT_TOKENS: Final = re.compile(
    r"tokens|token(ids?|izer|ization|type|count|limit|budget)|(eos|bos|pad|stop|special|unk|sep|image|start|end|think\w*)token(ids?)?"
)

# Keys by their vendors' own marks. Each begins where no word character stands before.
_VENDOR: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:bot)?(?:"
    r"(?:sk|pk|rk|ak|fk|csk|psk|sess|key|api)[-_][A-Za-z0-9_-]{9,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|gl(?:pat|dt|rt|cbt)-[\w-]{12,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}"
    r"|(?:AKIA|ASIA|ABIA|ACCA|AIDA|AROA)[A-Z0-9]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{10,}|GOCSPX-[\w-]{10,}|1//[\w-]{20,}"
    r"|eyJ[\w-]{8,2048}\.[\w-]{4,}(?:\.[\w-]*)*|hf_\w{12,}|gsk_\w{12,}|r8_\w{12,}|nvapi-[\w-]{12,}|pplx-\w{12,}|xai-\w{12,}|tvly-[\w-]{10,}|fw_\w{12,}"
    r"|lsv2_\w{10,}|pcsk_\w{10,}|voyage-?key-\w+|esecret_\w{10,}|SG\.[\w-]{10,64}\.[\w-]{10,}|npm_\w{16,}|pypi-[\w-]{16,}|dop_v1_\w{16,}|shp(?:at|ca|pa|ss)_\w{16,}"
    r"|hvs\.[\w-]{12,}|dckr_pat_[\w-]{10,}|AGE-SECRET-KEY-\w+|ATATT[\w=-]{16,}|\d{6,12}:[A-Za-z0-9_-]{30,}"
    r")"
)
VENDOR_PATTERN: Final = _VENDOR.pattern
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Ids that servers give to what they keep: public by design, and needed to follow a conversation.
_SERVER_ID: Final = re.compile(
    r"(?:resp|msg|thread|run|step|file|batch|asst|vs|vsfc?|call|toolu|chatcmpl|cmpl|gen|req|conv|ft|ftjob|modelresp|rs|fc|upload|item|event|chat|embd|rtoolu|srvtoolu|part|proj|org|wrkspc|task|inter|cachedContents)[-_]"
)
_HEX: Final = re.compile(r"[0-9a-fA-F]+")
_WORD: Final = re.compile(r"[A-Za-z0-9_+=~.-]{16,}")
_DIGIT: Final = re.compile(r"\d")
_RUN: Final = re.compile(r"\d+|[a-z]+|[A-Z]+")
_CHUNK: Final = re.compile(r"[A-Za-z0-9]+")
MIN_TOKEN: Final = 12  # no form is shorter
_MAX_NAME_CHARS = 128
# Names of models come with every exchange: those that hold no key are remembered, a few.
_MAX_CLEAN = 1024
_MAX_CLEAN_CHARS = 64
_clean: set[str] = set()
_MIN_RANDOM = 16
_MIN_HEX = 32
_MIN_CHANGES = 4


def is_secret_name(name: str) -> bool:
    """Whether a field of this name (query, form, body or header) carries a credential."""
    return _is_secret_name(name[:_MAX_NAME_CHARS])


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    folded = folded_name(name)
    if folded in _NAMES:
        return True
    return any(part in folded for part in _PARTS) and not _TEXT_TOKENS.fullmatch(folded) and not folded.endswith("tokens")


def is_token(word: str, *, hexes: bool = True) -> bool:
    """Whether one word is, or holds, a key. `hexes=False` leaves digests alone: model versions are named by them."""
    if len(word) < MIN_TOKEN:
        return False
    if _VENDOR.search(word):
        return True
    return any(_is_random(found[0], hexes=hexes) for found in _WORD.finditer(word))


def is_server_id(word: str) -> bool:
    return _SERVER_ID.match(word) is not None or _UUID.fullmatch(word) is not None


def mask_tokens(text: str, fingerprint: Callable[[str], str]) -> str:
    """A text with the keys in it replaced by their fingerprints. Digests stay: model versions are named by them."""
    if len(text) < MIN_TOKEN or text in _clean:
        return text
    masked = mask_vendor_forms(text, fingerprint)
    masked = _WORD.sub(
        lambda found: fingerprint(found[0]) if _is_random(found[0], hexes=False) and not _is_print(found[0]) else found[0], masked
    )
    if masked == text and len(text) <= _MAX_CLEAN_CHARS and len(_clean) < _MAX_CLEAN:
        _clean.add(text)
    return masked


def mask_vendor_forms(text: str, fingerprint: Callable[[str], str]) -> str:
    """The same for forms of vendors alone: ids that servers choose are as random as keys."""
    return _VENDOR.sub(lambda found: fingerprint(found[0]), text)


def _is_print(word: str) -> bool:
    """A fingerprint of ours, perhaps with what stood around it."""
    return len(word) == 32 and _HEX.fullmatch(word) is not None


def _is_random(word: str, *, hexes: bool) -> bool:
    if is_server_id(word):
        return False
    for found in _CHUNK.finditer(word):
        chunk = found[0]
        if len(chunk) < _MIN_RANDOM:
            continue
        if _HEX.fullmatch(chunk):
            if hexes and len(chunk) >= _MIN_HEX and not chunk.isdigit():
                return True
            continue
        digits = len(_DIGIT.findall(chunk))
        changes = len(_RUN.findall(chunk)) - 1
        if (digits >= 2 and changes >= _MIN_CHANGES) or (len(chunk) >= 20 and changes > 0.45 * len(chunk)):
            return True
    return False
