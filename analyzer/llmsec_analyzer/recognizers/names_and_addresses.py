"""Names of people and postal addresses: off unless the configuration asks for them.

Names need a language model: any spaCy pipeline that finds people (the extra `names`; spaCy's own models are installed apart).
Addresses follow rules: a street in the manner of its language, with a house number, and what stands before or after it: a
postal code and a town. A street alone counts only where its form leaves no doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from llmsec_analyzer.recognizers.plugins import Detector
from llmsec_analyzer.rules.schema import Rule
from llmsec_analyzer.settings import PIISettings
from llmsec_tap.errors import ConfigError

# A pipeline's memory grows with the text, so it gets this much at a time; beyond the second bound names are not looked for.
_AT_A_TIME: Final = 10_000
MAX_NAMED_CHARS: Final = 200_000
_PEOPLE: Final = frozenset(("PERSON", "PER", "PERSNAME"))

_CAPITAL = r"[A-ZÀ-ÖØ-ÞŁŚŻĆŹŃ]"
# All bounded, and no two of them in a row can share a character: these patterns run over whole texts of any kind.
_NAME = rf"{_CAPITAL}[\w'’.-]{{0,30}}"
_TOWN = rf"(?:St\. )?{_CAPITAL}[\w'’-]{{0,40}}(?: (?:{_CAPITAL}[\w'’-]{{0,40}}|am|an|der|im|in|bei|sur|sous|en|la|le|les|de|del|di|do|da|dos|upon|on|of|the)){{0,4}}"
_STREETS_EN = (
    "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Square|Sq|Terrace|Place|Pl|Way|Parkway|Pkwy"
    "|Highway|Hwy|Circle|Cir|Trail|Trl|Close|Crescent|Row|Mews|Gardens|Grove|Hill|Walk|Alley|Loop|Plaza|Ridge|Run|Path|Pike"
    "|Crossing|Point|Estates|Heights|Station|Valley|View|Village|Park|Meadows?|Springs?|Island|Islands|Junctions?|Forges?"
    "|Fords?|Falls|Fields?|Flats?|Glens?|Greens?|Harbors?|Hills|Hollow|Inlet|Isle|Keys?|Knolls?|Lakes?|Landing|Lights?|Lodge"
    "|Manors?|Mills?|Mission|Motorway|Mountains?|Neck|Orchard|Oval|Overpass|Parkways|Passage|Pines?|Plains?|Ports?|Prairie"
    "|Radial|Ranch|Rapids?|Rest|River|Shoals?|Shores?|Spurs?|Summit|Throughway|Trace|Track|Trafficway|Tunnel|Turnpike"
    "|Underpass|Unions?|Via|Viaduct|Ville|Vista|Wall|Wells?|Club|Cove|Creek|Dale|Dam|Divide|Bridge|Brooks?|Burgs?|Bypass|Camp"
    "|Canyon|Cape|Causeway|Centers?|Cliffs?|Common|Corners?|Course|Crest|Curve|Expressway|Extensions?|Ferry|Forest|Fork|Fort"
    "|Freeway|Gateway|Haven|Spring|Stravenue|Stream|Ways"
)
_STREETS_ES = (
    r"Calle|C/|Avenida|Avda\.|Av\.|Plaza|Paseo|Camino|Rambla|Cañada|Ronda|Urbanización|Glorieta|Pasaje|Callejón|Cuesta|Acceso|Vial|Via"
)
_UNIT_EN = r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Floor|Flat|#)\.? ?[\w-]{1,8})?"
_STATE_ZIP = r"[A-Z]{2} \d{5}(?:-\d{4})?"
_POSTCODE_UK = r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"
_PATTERNS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        # 12 Harbour Street, Apt 4, Springfield, IL 62704; 5 Mill Lane, Leeds LS1 4AP; 12 Harbour Street
        (
            rf"(?<![\w.-])\d{{1,6}}[A-Za-z]? (?:{_NAME} ){{1,3}}(?:{_STREETS_EN})\b\.?{_UNIT_EN}"
            rf"(?:,? ?\n?{_TOWN},? (?:{_STATE_ZIP}|{_POSTCODE_UK})|,? {_STATE_ZIP})(?!\w)"
        ),
        rf"(?<![\w.-])\d{{1,6}}[A-Za-z]? (?:{_NAME} ){{1,3}}(?:Street|Avenue|Road|Boulevard|Lane|Drive|Crescent|Ave|Rd|Blvd|Ln)\b{_UNIT_EN}",
        r"(?<!\w)(?:Unit|PSC|CMR) \d{1,5},? Box \d{1,5},? (?:APO|FPO|DPO),? A[AEP] \d{5}(?!\w)",
        # Lindenstraße 12a, 10115 Berlin
        (
            rf"(?<![\w-])(?:{_NAME} )?(?:{_CAPITAL}[\w'’.-]{{0,40}}(?:stra(?:ß|ss)e|str\.|weg|allee|gasse|platz|ring|ufer|damm|markt|hof|plein|laan|straat|gatan"
            rf"|vägen|vej|gade|veien|gata)|(?:{_CAPITAL}[\w'’.]{{0,30}}-){{1,4}}(?:Stra(?:ß|ss)e|Str\.|Weg|Allee|Gasse|Platz|Ring|Ufer|Damm)) ?\d{{1,4}} ?[a-zA-Z]?(?:[-/]\d{{1,4}})?"
            rf",? ?\n?(?:[A-Z]{{1,2}}-)?\d{{4,5}}(?: ?[A-Z]{{2}})? {_TOWN}"
        ),
        # 12 bis, rue de la Paix, 75002 Paris
        (
            rf"(?<![\w-])(?:\d{{1,4}}(?: ?(?:bis|ter|quater))?,? )?(?:rue|avenue|boulevard|chemin|place|allée|impasse|quai|route|cours|square|passage)"
            rf" (?:[\w'’-]{{1,30}} ){{0,5}}?[\w'’-]{{1,30}},? ?\n?\d{{5}} {_TOWN}"
        ),
        # Calle Mayor 5, 28013 Madrid; Via Roma, 10, 00184 Roma; Rua Augusta, 120, 01304-001 São Paulo
        (
            rf"(?<![\w-])(?:{_STREETS_ES}|Rua|Praça|Travessa|Alameda|Viale|Piazza|Corso|Vicolo|ul\.|al\.|ulica|aleja)"
            rf" ?(?:[\w'’.-]{{1,30}} ){{0,4}}[\w'’.-]{{1,30}},? (?:n[º°.]? ?)?\d{{1,5}}[a-zA-Z]?(?:/\d{{1,4}})?(?:,? ?\n?|[^\n\d]{{1,30}})\d{{2}}-?\d{{3}}(?:-\d{{3}})? {_TOWN}"
        ),
        # Calle Mayor 5, Toledo, 45001
        (
            rf"(?<![\w-])(?:{_STREETS_ES})"
            rf" (?:de |del |de la )?{_NAME}(?: (?:de |del |de la )?{_NAME}){{0,4}} \d{{1,4}}(?: [\w. ]{{1,16}}?)? ?, {_TOWN}, \d{{5}}(?!\w)"
        ),
        # 〒150-0001 東京都渋谷区神宮前1丁目2番3号
        r"(?:〒\d{3}-\d{4}\s?)?[一-鿿]{2,4}[都道府県][一-鿿ぁ-んァ-ヶ]{1,12}[市区町村郡][一-鿿ぁ-んァ-ヶ]{0,20}\d{1,4}(?:丁目\d{1,4}番\d{1,4}号|-\d{1,4}(?:-\d{1,4})?)",
        # ул. Ленина, д. 5, 101000
        r"(?<!\w)(?:(?:г|с|п|д|ст)\. [А-ЯЁ][\w -]{1,40}, )?(?:ул|пр|пер|бул|наб|ш|алл|просп)\. [А-ЯЁ\d][\w. -]{1,40}, д\. ?\d{1,4}(?:/\d{1,4})?(?:,? (?:кв|корп|стр)\. ?\d{1,4})*(?:, \d{6})?",
    )
)


class Addresses:
    """Postal addresses by rules."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def scan(self, text: str, role: str) -> Iterator[tuple[int, int]]:
        taken: list[tuple[int, int]] = []
        for pattern in _PATTERNS:
            for found in pattern.finditer(text):
                start, end = found.span()
                if not any(start < other_end and other < end for other, other_end in taken):
                    taken.append((start, end))
        yield from sorted(taken)


class Names:
    """Names of people, by a spaCy pipeline. Loads it at once, so that a missing one shows when a run begins."""

    def __init__(self, rule: Rule, model: str) -> None:
        self.rule = rule
        try:
            import spacy  # noqa: PLC0415 - an extra, and 1 s
        except ImportError:
            raise ConfigError("security.pii_detection.names: spaCy is not installed", "pip install 'llmsec-trace[names]'") from None
        try:
            self._pipeline: Any = spacy.load(model)
        except OSError:
            raise ConfigError(
                f"security.pii_detection.names: there is no pipeline {model!r}", f"python -m spacy download {model}, or a path to one"
            ) from None

    def scan(self, text: str, role: str) -> Iterator[tuple[int, int]]:
        size = min(len(text), MAX_NAMED_CHARS)
        start = 0
        while start < size:
            end = min(size, start + _AT_A_TIME)
            if end < size:  # between lines or words, so that no name is cut
                end = max(text.rfind("\n", start + 1, end), text.rfind(" ", start + 1, end), start + 1 if end - start < 2 else 0) or end
            for entity in self._pipeline(text[start:end]).ents:
                if entity.label_ in _PEOPLE:
                    yield start + entity.start_char, start + entity.end_char
            start = end


def detectors(settings: PIISettings, rules: dict[str, Rule]) -> dict[str, Detector]:
    """What the configuration asks for, by name. A rule that is switched off has none."""
    found: dict[str, Detector] = {}
    person, address = rules.get("pii.person"), rules.get("pii.address")
    if settings.names.enabled and person is not None:
        found["names"] = Names(person, settings.names.model)
    if settings.addresses and address is not None:
        found["addresses"] = Addresses(address)
    return found
