"""Cipher suites whose records can be opened: those with authenticated encryption (AEAD).

Numbers and names: https://www.iana.org/assignments/tls-parameters. A suite that is not here is named by its number, and its records stay closed.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Cipher = Literal["gcm", "ccm", "ccm8", "chacha20"]


class Suite(NamedTuple):
    """`key_bytes` of a record key; `digest` is the hash of the key schedule, by hashlib's name."""

    name: str
    cipher: Cipher
    key_bytes: int
    digest: str

    @property
    def salt_bytes(self) -> int:
        """The part of the nonce that TLS 1.2 derives with the keys (RFC 5288 section 3, RFC 6655 section 3, RFC 7905 section 2)."""
        return 12 if self.cipher == "chacha20" else 4

    @property
    def tag_bytes(self) -> int:
        return 8 if self.cipher == "ccm8" else 16


def _aes(cipher: Cipher, key_bits: int, digest: str, names: dict[int, str]) -> dict[int, Suite]:
    suffix = {"gcm": f"GCM_{digest.upper()}", "ccm": "CCM", "ccm8": "CCM_8"}[cipher]
    return {number: Suite(f"TLS_{name}_WITH_AES_{key_bits}_{suffix}", cipher, key_bits // 8, digest) for number, name in names.items()}


SUITES: Final[dict[int, Suite]] = {
    # TLS 1.3: RFC 8446 appendix B.4.
    0x1301: Suite("TLS_AES_128_GCM_SHA256", "gcm", 16, "sha256"),
    0x1302: Suite("TLS_AES_256_GCM_SHA384", "gcm", 32, "sha384"),
    0x1303: Suite("TLS_CHACHA20_POLY1305_SHA256", "chacha20", 32, "sha256"),
    0x1304: Suite("TLS_AES_128_CCM_SHA256", "ccm", 16, "sha256"),
    0x1305: Suite("TLS_AES_128_CCM_8_SHA256", "ccm8", 16, "sha256"),
    # TLS 1.2: RFC 5288, 5289, 5487 and 8442 (GCM), RFC 6655 and 7251 (CCM), RFC 7905 (ChaCha20).
    **_aes(
        "gcm",
        128,
        "sha256",
        {
            0x009C: "RSA",
            0x009E: "DHE_RSA",
            0x00A0: "DH_RSA",
            0x00A2: "DHE_DSS",
            0x00A4: "DH_DSS",
            0x00A6: "DH_anon",
            0x00A8: "PSK",
            0x00AA: "DHE_PSK",
            0x00AC: "RSA_PSK",
            0xC02B: "ECDHE_ECDSA",
            0xC02D: "ECDH_ECDSA",
            0xC02F: "ECDHE_RSA",
            0xC031: "ECDH_RSA",
            0xD001: "ECDHE_PSK",
        },
    ),
    **_aes(
        "gcm",
        256,
        "sha384",
        {
            0x009D: "RSA",
            0x009F: "DHE_RSA",
            0x00A1: "DH_RSA",
            0x00A3: "DHE_DSS",
            0x00A5: "DH_DSS",
            0x00A7: "DH_anon",
            0x00A9: "PSK",
            0x00AB: "DHE_PSK",
            0x00AD: "RSA_PSK",
            0xC02C: "ECDHE_ECDSA",
            0xC02E: "ECDH_ECDSA",
            0xC030: "ECDHE_RSA",
            0xC032: "ECDH_RSA",
            0xD002: "ECDHE_PSK",
        },
    ),
    **_aes("ccm", 128, "sha256", {0xC09C: "RSA", 0xC09E: "DHE_RSA", 0xC0A4: "PSK", 0xC0A6: "DHE_PSK", 0xC0AC: "ECDHE_ECDSA"}),
    **_aes("ccm", 256, "sha256", {0xC09D: "RSA", 0xC09F: "DHE_RSA", 0xC0A5: "PSK", 0xC0A7: "DHE_PSK", 0xC0AD: "ECDHE_ECDSA"}),
    **_aes("ccm8", 128, "sha256", {0xC0A0: "RSA", 0xC0A2: "DHE_RSA", 0xC0A8: "PSK", 0xC0AA: "PSK_DHE", 0xC0AE: "ECDHE_ECDSA"}),
    **_aes("ccm8", 256, "sha256", {0xC0A1: "RSA", 0xC0A3: "DHE_RSA", 0xC0A9: "PSK", 0xC0AB: "PSK_DHE", 0xC0AF: "ECDHE_ECDSA"}),
    0xD003: Suite("TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256", "ccm8", 16, "sha256"),
    0xD005: Suite("TLS_ECDHE_PSK_WITH_AES_128_CCM_SHA256", "ccm", 16, "sha256"),
    **{
        number: Suite(f"TLS_{name}_WITH_CHACHA20_POLY1305_SHA256", "chacha20", 32, "sha256")
        for number, name in {
            0xCCA8: "ECDHE_RSA",
            0xCCA9: "ECDHE_ECDSA",
            0xCCAA: "DHE_RSA",
            0xCCAB: "PSK",
            0xCCAC: "ECDHE_PSK",
            0xCCAD: "DHE_PSK",
            0xCCAE: "RSA_PSK",
        }.items()
    },
}


def suite_name(number: int) -> str:
    suite = SUITES.get(number)
    return suite.name if suite is not None else f"0x{number:04X}"
