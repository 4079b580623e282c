"""What is and is not a secret or personal data, by exact span."""

from __future__ import annotations

import pytest

from llmsec_analyzer.prove.synthetic import expand

PII = [
    ("write to jo.roe@example.co.uk.", ("EMAIL", "jo.roe@example.co.uk")),
    ("user=jo@example.org ok", ("EMAIL", "jo@example.org")),
    ("メールはyuta+x@例え.jp、", ("EMAIL", "yuta+x@例え.jp")),
    ("foo@ bar.com", None),
    ("root@localhost", None),
    ("a@b.notatld", None),
    ("4111 1111 1111 1111", ("CREDIT_CARD", "4111 1111 1111 1111")),
    ("4111 1111 1111 1112", None),
    ("My SSN is 219-09-8765,", ("SSN", "219-09-8765")),
    ("SSN 219 09 8765", ("SSN", "219 09 8765")),
    ("IBAN: DE89 3704 0044 0532 0130 00 BANK", ("IBAN", "DE89 3704 0044 0532 0130 00")),
    ("iban gb82west12345698765432", ("IBAN", "gb82west12345698765432")),
    ("Version 10.76.98.57 fixes", None),
    ("from 203.0.113.9 at", ("IP_ADDRESS", "203.0.113.9")),
    ("127.0.0.1", None),
    ("ping 2001:db8::8:800:200c:417a fails", ("IP_ADDRESS", "2001:db8::8:800:200c:417a")),
    ("at 12:30:45", None),
    ("02:00:5e:10:00:ff", ("MAC_ADDRESS", "02:00:5e:10:00:ff")),
    ("call +44 20 7946 0958 now", ("PHONE", "+44 20 7946 0958")),
    ("contacts: 1) Jo – 212-555-0187 2) Al", ("PHONE", "212-555-0187")),
    ("телефон 8 (952) 170-98-01.", ("PHONE", "8 (952) 170-98-01")),
    ("I counted 9866997520 stars", None),
    ("Timestamp 1772496104037 ms", None),
    ("ISBN 978-4-0211-7828-5", None),
    ("wallet 1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", ("CRYPTO_WALLET", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2")),
    ("a hotel 5551234567 rooms", None),
    ("DOB 04/07/1981", ("DATE_OF_BIRTH", "04/07/1981")),
]
SECRETS = [
    ("Here: <key> thanks", "ghp_<alnum:36>", True),
    ('{"api_key": "<key>"}', "<hex:40>", True),
    ("- name: DB_PASSWORD\n  value: <key>\n", "<alnum:10>7x!", True),
    ("postgres://app:<key>@db.internal:5432/app", "<alnum:12>", True),
    ("use `<key>` as the example token", "<alnum:24>", True),
    ("aws_secret_access_key=<key>", "<b64:40>", True),
    ("-----BEGIN RSA PRIVATE KEY-----\n<key>\n-----END RSA PRIVATE KEY-----", "<b64:64>", True),
    ("password: ${DB_PASSWORD}", "", False),
    ("SECRET_KEY = config('SECRET_KEY')", "", False),
    ("token = os.environ['GITHUB_TOKEN']", "", False),
    ("checksum <key>", "<hex:40>", False),
    ('"integrity": "sha512-<key>=="', "<b64:86>", False),
    ("-----BEGIN PUBLIC KEY-----\n<key>\n-----END PUBLIC KEY-----", "<b64:64>", False),
    ("The password must be at least 12 characters long.", "", False),
    ("max_tokens: 4096, tokens: 17", "", False),
    ("request-id: <key>", "<hex:8>-<hex:4>-<hex:4>-<hex:4>-<hex:12>", False),
]


@pytest.mark.parametrize(("text", "wanted"), PII, ids=[text[:24] for text, _ in PII])
def test_personal_data(rules_only, text, wanted):
    found = [f for f in rules_only.scan(text).findings if f.severity != "info"]
    assert [(f.type, text[f.location.start : f.location.end]) for f in found] == ([wanted] if wanted else [])


@pytest.mark.parametrize(("frame", "key", "wanted"), SECRETS, ids=[frame[:24] for frame, _, _ in SECRETS])
def test_secrets(rules_only, frame, key, wanted):
    value = expand(key)
    text = frame.replace("<key>", value)
    found = [f for f in rules_only.scan(text).findings if f.category == "secret"]
    assert bool(found) is wanted
    if wanted:
        start, end = found[0].location.start, found[0].location.end
        assert text.index(value) < end
        assert start < text.index(value) + len(value)
        assert value not in found[0].preview


def test_example_keys_of_manuals_are_information(rules_only):
    (finding,) = rules_only.scan("aws_access_key_id = AKIAIOSFODNN7EXAMPLE").findings
    assert (finding.severity, finding.type) == ("info", "aws_access_key_id")
    assert "documentation" in finding.explanation


def test_the_same_secret_has_the_same_fingerprint_everywhere(rules_only):
    key = expand("ghp_<alnum:36>")
    first, second = (rules_only.scan(text).findings[0] for text in (key, f"see {key} here"))
    assert first.fingerprint == second.fingerprint
    assert first.finding_id != second.finding_id


@pytest.mark.parametrize(
    "text", ["\ud800 jo@example.org", "\x00\x00jo@example.org", "😀" * 5000 + " jo@example.org", "éжあ jo@example.org"]
)
def test_offsets_are_in_characters(rules_only, text):
    (finding,) = rules_only.scan(text).findings
    assert text[finding.location.start : finding.location.end] == "jo@example.org"
