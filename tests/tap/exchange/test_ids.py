from __future__ import annotations

from llmsec_tap.exchange.ids import RequestDigest
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.wire.messages import Head

KEY = fingerprinter(b"k" * 32)
STARTED_NS = 1_790_000_000_123_456_789


def id_of(
    target: str = "/v1/x?key=a", body: tuple[bytes, ...] = (b"hello",), *, started_ns: int | None = STARTED_NS, ordinal: int = 0
) -> str:
    digest = RequestDigest()
    digest.head(Head(STARTED_NS, "1.1", [], method="POST", target=target))
    for piece in body:
        digest.data(piece)
    return digest.exchange_id("10.0.0.1:1", "10.0.0.2:2", started_ns, ordinal, KEY)


def test_the_id_begins_with_the_time_so_that_ids_sort_by_it() -> None:
    assert id_of()[:12] == f"{STARTED_NS // 1_000_000:012x}"
    assert id_of(started_ns=None)[:12] == "0" * 12


def test_it_is_the_same_however_the_body_was_cut_and_whatever_the_credential_in_the_query() -> None:
    assert id_of() == id_of("/v1/x?key=b", (b"he", b"", b"llo"))


def test_it_differs_by_request_place_and_installation() -> None:
    assert len({id_of(), id_of("/v1/y"), id_of(body=(b"hallo",)), id_of(ordinal=1), id_of(started_ns=STARTED_NS + 1)}) == 5
    digest = RequestDigest()
    assert digest.exchange_id("a", "b", 1, 0, KEY) != digest.exchange_id("a", "b", 1, 0, fingerprinter(b"other"))


def test_it_can_be_asked_before_the_end_and_again() -> None:
    digest = RequestDigest()
    digest.data(b"x")
    assert digest.exchange_id("a", "b", 1, 0, KEY) == digest.exchange_id("a", "b", 1, 0, KEY)
