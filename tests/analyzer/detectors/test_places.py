"""Names and addresses: off by default, and what they find where they are on."""

from __future__ import annotations

import time

import pytest

from llmsec_analyzer.judge.scanner import Scanner
from llmsec_analyzer.recognizers import names_and_addresses as places
from llmsec_analyzer.settings import DetectionSettings, InjectionSettings, ModelSettings, NamesSettings, PIISettings
from llmsec_tap.errors import ConfigError

OFF = InjectionSettings(model=ModelSettings(enabled=False))


def scanner(**pii) -> Scanner:
    return Scanner(DetectionSettings(plugins=False, prompt_injection=OFF, pii_detection=PIISettings(**pii)), lambda value: value[:4])


@pytest.mark.parametrize(
    "address",
    [
        "12 Harbour Street, Apt 4, Springfield, IL 62704",
        "5 Mill Lane, Leeds LS1 4AP",
        "1600 Old Quarry Road",
        "PSC 814, Box 2210, APO AE 09421",
        "Lindenstraße 12a, 10115 Berlin",
        "Anna-Seghers-Weg 7, 04103 Leipzig",
        "12 bis, rue des Lilas, 69003 Lyon",
        "Calle Mayor 5, 28013 Madrid",
        "Rambla Nova 16, Tarragona, 43004",
        "Via Garibaldi, 10, 00153 Roma",
        "ул. Садовая, д. 5, 191023",
        "〒150-0001 東京都渋谷区神宮前1丁目2番3号",
    ],
)
def test_addresses_are_found_from_end_to_end(address):
    text = f"Please send it to {address}. Thank you."
    (finding,) = [finding for finding in scanner(addresses=True).scan(text).findings if finding.type == "ADDRESS"]
    assert text[finding.location.start : finding.location.end] == address
    assert address not in finding.preview


@pytest.mark.parametrize(
    "text",
    ["In 12 Days Way of life changed", "3 Easy Ways to cook", "The 5 Seconds Rule", "Straße 5", "rue sans numéro", "C/C++ 17, 20000 lines"],
)
def test_other_texts_hold_none(text):
    assert not [finding for finding in scanner(addresses=True).scan(text).findings if finding.type == "ADDRESS"]


def test_neither_is_looked_for_by_default():
    text = "Maren Holt lives at 12 Harbour Street, Springfield, IL 62704"
    assert not [finding for finding in scanner().scan(text).findings if finding.type in ("ADDRESS", "PERSON")]


def test_hostile_texts_take_bounded_time():
    started = time.process_time()
    for text in ("1 Ab " * 40_000, "rue a " * 30_000, "Via " * 50_000, "ул. А" * 30_000, "A-" * 80_000, "都" * 100_000):
        list(places.Addresses(scanner().rules.by_id["pii.address"]).scan(text, "user"))
    assert time.process_time() - started < 20


def test_names_by_a_pipeline_with_places_in_the_whole_text(tmp_path):
    spacy = pytest.importorskip("spacy", reason="the extra `names` is not installed")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Maren Holt"}, {"label": "ORG", "pattern": "Kestrel Logistics"}]
    )
    pipeline.to_disk(tmp_path / "small")
    filler = "The boats were waiting for the tide to turn. " * 400
    text = f"{filler}Maren Holt works at Kestrel Logistics. {filler}Ask Maren Holt!"
    found = scanner(names=NamesSettings(enabled=True, model=str(tmp_path / "small"))).scan(text).findings
    assert [(finding.type, text[finding.location.start : finding.location.end]) for finding in found] == [("PERSON", "Maren Holt")] * 2


def test_a_pipeline_that_is_not_there_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"pii_detection\.names"):
        scanner(names=NamesSettings(enabled=True, model="no_such_pipeline"))
