"""WebSocket frames to messages: fragments, masks, deflate, loss and damage. Frames are written by hand."""

from __future__ import annotations

import random
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsec_tap import limits
from llmsec_tap.account import Account
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.messages import Head
from llmsec_tap.wire.protocols import Upgrade
from llmsec_tap.wire.websocket import WebSocket, deflate_of
from support.streams import cuts
from support.websocket import BINARY, CLOSE, CONTINUATION, FIN, KEY, PING, RSV1, RSV2, Deflater, frame, masked

HELLO = b'{"type": "hello"}'
AGAIN = b'{"type": "hello", "again": true}'


class Heard:
    """A `MessageSink`, and the connection that it hears."""

    def __init__(self, extensions: bytes = b"", account: Account | None = None) -> None:
        self.said: list[tuple[str, bytes | int | None]] = []
        self.anomalies: list[str] = []
        flow = Flow("10.0.0.1:1", "10.0.0.2:2", 1, is_midstream=False)
        self.holding = (account or Account()).open("")
        flow.reserve = self.holding.reserve
        head = Head(1, "1.1", [(b"upgrade", b"websocket"), (b"sec-websocket-extensions", extensions)], status=101)
        self.socket = WebSocket(flow, Upgrade(None, head, client_is_first=True), self, self.anomalies.append)

    def message(self, _ts_ns: int, data: bytes, *, of_client: bool) -> None:
        self.said.append(("client" if of_client else "server", data))

    def lost(self, _ts_ns: int, *, of_client: bool) -> None:
        self.said.append(("lost of client" if of_client else "lost of server", None))

    def closing(self, _ts_ns: int, code: int | None, *, of_client: bool) -> None:
        self.said.append(("close of client" if of_client else "close of server", code))

    def copy_differs(self, data: bytes, *, of_client: bool) -> None:
        assert not of_client
        self.said.append(("copy", data))

    def anomaly(self, name: str) -> None: ...

    def shed(self) -> None: ...

    def close(self, ts_ns: int, reason: str) -> None: ...

    def client(self, *pieces: bytes) -> Heard:
        for piece in pieces:
            self.socket.first.data(2, piece)
        return self

    def server(self, *pieces: bytes) -> Heard:
        for piece in pieces:
            self.socket.second.data(2, piece)
        return self

    def end(self) -> list[tuple[str, bytes | int | None]]:
        self.socket.first.end(3, "fin")
        self.socket.second.end(3, "fin")
        self.socket.close(3, "fin")
        assert self.holding.held == 0
        return self.said


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536])
def test_a_length_is_of_seven_sixteen_or_sixtyfour_bits(size: int) -> None:
    text = b"a" * size
    assert Heard().client(masked(text)).server(frame(text)).end() == [("client", text), ("server", text)]


def test_how_bytes_are_cut_makes_no_difference() -> None:
    data = (
        masked(HELLO[:4], bits=0)
        + masked(b"?", PING)
        + masked(HELLO[4:], CONTINUATION)
        + masked(b"b" * 200, BINARY)
        + masked(b"\x03\xe8ok", CLOSE)
    )
    for pieces in cuts(data):
        assert Heard().client(*pieces).end() == [("client", HELLO), ("client", b"b" * 200), ("close of client", 1000)]


def test_control_frames_between_fragments_are_no_part_of_the_message() -> None:
    pieces = [
        frame(HELLO[:3], bits=0),
        frame(b"x", PING),
        frame(HELLO[3:9], CONTINUATION, bits=0),
        frame(b"", PING),
        frame(HELLO[9:], CONTINUATION),
    ]
    assert Heard().server(*pieces).end() == [("server", HELLO)]


@pytest.mark.parametrize(("payload", "code"), [(b"", None), (b"\x03", None), (b"\x03\xf3", 1011), (b"\x0f\xa0policy", 4000)])
def test_a_close_frame_says_its_code(payload: bytes, code: int | None) -> None:
    assert Heard().server(frame(payload, CLOSE)).end() == [("close of server", code)]


# --- deflate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extensions", "server_keeps", "client_keeps"),
    [
        (b"permessage-deflate", True, True),
        (b"x-other, permessage-deflate; server_no_context_takeover", False, True),
        (b'permessage-deflate; client_no_context_takeover; server_max_window_bits="9"', True, False),
        (b"Permessage-Deflate;server_no_context_takeover;client_no_context_takeover", False, False),
    ],
)
@pytest.mark.parametrize("bits", [9, 15])
def test_messages_are_inflated_as_was_agreed(extensions: bytes, server_keeps: bool, client_keeps: bool, bits: int) -> None:
    agreed = deflate_of(Head(1, "1.1", [(b"sec-websocket-extensions", extensions)]))
    assert agreed == (server_keeps, client_keeps)
    to_client, to_server = Deflater(keeps_context=server_keeps, window_bits=bits), Deflater(keeps_context=client_keeps, window_bits=bits)
    heard = Heard(extensions)
    for text in (HELLO, AGAIN, HELLO * 3000):
        heard.client(masked(to_server(text), bits=FIN | RSV1)).server(frame(to_client(text), bits=FIN | RSV1))
    heard.server(frame(b"plain"))
    told = [side for text in (HELLO, AGAIN, HELLO * 3000) for side in (("client", text), ("server", text))]
    assert heard.end() == [*told, ("server", b"plain")]


def test_a_deflated_message_may_come_in_fragments() -> None:
    data = Deflater()(HELLO)
    assert Heard(b"permessage-deflate").server(frame(data[:5], bits=RSV1), frame(data[5:], CONTINUATION)).end() == [("server", HELLO)]


def test_a_last_block_ends_no_context() -> None:
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = last.compress(HELLO) + last.flush() + b"\0"
    then = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=HELLO)
    second = (then.compress(AGAIN) + then.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(second) < 25
    heard = Heard(b"permessage-deflate").server(frame(first, bits=FIN | RSV1), frame(second, bits=FIN | RSV1))
    assert heard.end() == [("server", HELLO), ("server", AGAIN)]


def test_a_bomb_is_not_inflated_beyond_the_limit_of_an_event() -> None:
    bomb = Deflater()(bytes(limits.MAX_EVENT_BYTES + 1))
    heard = Heard(b"permessage-deflate").server(frame(bomb, bits=FIN | RSV1)).server(frame(Deflater()(HELLO), bits=FIN | RSV1))
    assert heard.end() == [("lost of server", None), ("server", HELLO)]
    assert heard.anomalies == ["websocket_unread"]


def test_many_last_blocks_take_no_time() -> None:
    began = time.process_time()
    heard = Heard(b"permessage-deflate").server(frame(b"\x03\x00" * 4_000_000, bits=FIN | RSV1))
    assert heard.end() == [("lost of server", None)]
    assert time.process_time() - began < 2


# --- damage and hostility ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(frame(b"x", kind=3), id="opcode"),
        pytest.param(frame(b"x", kind=11), id="control opcode"),
        pytest.param(frame(b"x", bits=FIN | RSV2), id="reserved bit"),
        pytest.param(frame(b"x", bits=FIN | RSV1), id="deflated though nothing was agreed"),
        pytest.param(frame(b"x", PING, bits=0), id="control frame in fragments"),
        pytest.param(frame(b"x" * 126, PING), id="long control frame"),
        pytest.param(b"\x81\x7f" + b"\xff" * 8, id="length beyond 2**63"),
    ],
)
def test_what_is_no_frame_is_passed_over(bad: bytes) -> None:
    heard = Heard().server(bad, frame(HELLO))
    assert heard.end()[-1] == ("server", HELLO)
    assert "websocket_bad_frame" in heard.anomalies


def test_a_length_that_nothing_could_hold_holds_nothing() -> None:
    heard = Heard().server(b"\x81\x7f" + (1 << 62).to_bytes(8, "big"), b"x" * 100_000)
    assert heard.holding.held == 0
    assert heard.end() == [("lost of server", None)] or heard.anomalies == ["event_limit"]


def test_an_unmasked_client_and_a_masked_server_are_read_as_a_lax_peer_would() -> None:
    heard = Heard().client(frame(HELLO)).server(masked(HELLO))
    assert heard.end() == [("client", HELLO), ("server", HELLO)]
    assert heard.anomalies == ["websocket_bad_frame"] * 2


def test_a_message_inside_another_is_read_and_so_is_the_other() -> None:
    heard = Heard().server(frame(HELLO, bits=0), frame(AGAIN))
    assert heard.end() == [("server", HELLO), ("server", AGAIN)]
    assert heard.anomalies == ["websocket_bad_frame"]


def test_a_continuation_of_nothing_is_left_out() -> None:
    heard = Heard().server(frame(b"x", CONTINUATION), frame(HELLO))
    assert heard.end() == [("server", HELLO)]
    assert heard.anomalies == ["websocket_bad_frame"]


def test_a_gap_inside_a_frame_costs_its_message_alone() -> None:
    whole = frame(b"a" * 1000)
    heard = Heard().server(whole[:300])
    heard.socket.second.gap(2, 500)
    assert heard.server(whole[800:] + frame(HELLO)).end() == [("lost of server", None), ("server", HELLO)]


@pytest.mark.parametrize("of_client", [True, False])
@pytest.mark.parametrize("length", [None, 7000])
def test_after_a_gap_of_frames_the_next_one_is_found(of_client: bool, length: int | None) -> None:
    write = masked if of_client else frame
    heard = Heard()
    (heard.client if of_client else heard.server)(write(HELLO))
    side = heard.socket.first if of_client else heard.socket.second
    side.gap(2, length)
    rest = write(random.Random(5).randbytes(300), BINARY)[100:] + write(AGAIN) + write(HELLO)
    for at in range(0, len(rest), 50):
        side.data(3, rest[at : at + 50])
    who = "client" if of_client else "server"
    assert heard.end() == [(who, HELLO), (f"lost of {who}", None), (who, AGAIN), (who, HELLO)]


def test_what_refers_to_lost_bytes_is_unread_and_what_does_not_is_read() -> None:
    deflate = Deflater()
    first, second = frame(deflate(HELLO), bits=FIN | RSV1), frame(deflate(AGAIN), bits=FIN | RSV1)
    heard = Heard(b"permessage-deflate").server(first[:4])
    heard.socket.second.gap(2, len(first) - 4)
    heard.server(second, frame(Deflater()(AGAIN), bits=FIN | RSV1))
    assert heard.end() == [("lost of server", None), ("lost of server", None), ("server", AGAIN)]
    assert heard.anomalies == ["websocket_unread"]


def test_a_full_account_costs_the_message() -> None:
    heard = Heard(account=Account(limits.MIB)).server(frame(b"a" * (4 * limits.MIB))[:-1], b"a", frame(HELLO))
    assert heard.end() == [("server", HELLO)]
    assert heard.anomalies == ["memory_limit"]


def test_an_end_inside_a_message_is_a_loss() -> None:
    assert Heard().server(frame(HELLO)[:-1]).end() == [("lost of server", None)]
    assert Heard().server(frame(HELLO, bits=0)).end() == [("lost of server", None)]


def test_a_megabyte_of_bytes_one_by_one_takes_linear_time() -> None:
    data = masked(b"x" * 200_000, BINARY)
    took = []
    for size in (100_000, 200_000):
        heard = Heard()
        began = time.process_time()
        for number in range(size):
            heard.socket.first.data(1, data[number : number + 1])
        took.append(time.process_time() - began)
    assert took[1] < 5 * took[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=12), st.booleans())
def test_no_bytes_raise_and_what_is_held_is_given_back(pieces: list[bytes], is_deflated: bool) -> None:
    heard = Heard(b"permessage-deflate" if is_deflated else b"")
    for number, piece in enumerate(pieces):
        side = heard.socket.first if number % 2 else heard.socket.second
        if len(piece) == 1:
            side.gap(2, None if piece[0] & 1 else piece[0] + 1)
        elif piece:
            side.data(2, piece)
    heard.end()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(1, 4)), max_size=8), st.integers(0, 2**32))
def test_messages_are_what_an_endpoint_wrote(messages: list[tuple[bytes, int]], seed: int) -> None:
    rng, deflate = random.Random(seed), Deflater()
    data = b""
    for message, parts in messages:
        is_deflated = rng.random() < 0.5
        body = deflate(message) if is_deflated else message
        size = len(body) // parts + 1
        fragments = [body[at : at + size] for at in range(0, len(body), size)]
        for number, fragment in enumerate(fragments):
            bits = (RSV1 if is_deflated and not number else 0) | (FIN if number == len(fragments) - 1 else 0)
            data += frame(fragment, CONTINUATION if number else BINARY, bits, key=KEY)
            data += frame(b"", PING, key=KEY) if rng.random() < 0.2 else b""
    heard = Heard(b"permessage-deflate")
    at = 0
    while at < len(data):
        size = rng.randrange(1, 60)
        heard.client(data[at : at + size])
        at += size
    assert heard.end() == [("client", message) for message, _ in messages]
    assert heard.anomalies == []
