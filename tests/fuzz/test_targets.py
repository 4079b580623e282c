"""Every fuzz target on its seeds, on what fuzzing once found, and on what hypothesis makes of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fuzz_targets import TARGETS, seeds

# Inputs that once broke a target.
FOUND: list[tuple[str, bytes]] = [
    # A FIN that was acknowledged only together with the segment that closed the connection: its bytes stayed held.
    ("tcp", b"\x01\t\x08ca\xff\xac\x03b\xfb\x01\xca\x00\x08)b\x10\x0e\xacyz\x01\x0c\x11\x02wp"),
    # A response given up while its request's body was still being read, then a gap in that body.
    ("conversation", b"POST /a HTTP/1.1\r\nContent-Length: 82\r\n\r\nx\xfb\xfcHTXX\xf9\xf9\xf9y\xfbPOST /b HTTP/1.1\r\n\r\n\xf9\xfbuser"),
    # What a chunk size line is depended on where the bytes before it were cut.
    (
        "http_message",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfa\xfa\r\x01\xfa{ mo ching: chunkedund\r\n\r\nfa\xfa\r\x01el\xfa:",
    ),
]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_found_once(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_mutated_seeds(name: str, data: st.DataObject) -> None:
    mutated = bytearray(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\xf9", b"\xfa", b"\xfb\xfc", b"\r\n", b"{}"])
        )
    TARGETS[name](bytes(mutated))
