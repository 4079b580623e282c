"""Another protocol than HTTP/1 is handed both directions whole, whichever way it was found out."""

from __future__ import annotations

import pytest

from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.connection import Connection
from llmsec_tap.wire.flow import Flow, StreamSink
from llmsec_tap.wire.protocols import Protocols, Upgrade

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALL = b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: Chat\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n"


class Heard:
    """A protocol that writes down what it is told, by direction: `>` from the first endpoint, `<` from the second."""

    def __init__(self, flow: Flow, upgrade: Upgrade | None = None) -> None:
        self.flow = flow
        self.upgrade = upgrade
        self.lines: list[str] = []
        self.first: StreamSink = _Side(self.lines, ">")
        self.second: StreamSink = _Side(self.lines, "<")

    def close(self, ts_ns: int, reason: str) -> None:
        self.lines.append(f"close {reason}")

    def anomaly(self, name: str) -> None:
        self.lines.append(f"anomaly {name}")

    def shed(self) -> None:
        self.lines.append("shed")


class _Side:
    def __init__(self, lines: list[str], mark: str) -> None:
        self.lines, self.mark = lines, mark
        self.data = self.first_data

    def first_data(self, ts_ns: int, data: bytes) -> None:
        self.data = self.more  # as sinks may
        self.lines.append(f"{self.mark} first {data.decode('latin-1')!r}")

    def more(self, ts_ns: int, data: bytes) -> None:
        self.lines.append(f"{self.mark} {data.decode('latin-1')!r}")

    def gap(self, ts_ns: int, length: int | None) -> None:
        self.lines.append(f"{self.mark} gap {length}")

    def other(self, ts_ns: int, data: bytes) -> None:
        self.lines.append(f"{self.mark} other {data.decode('latin-1')!r}")

    def again(self) -> None:
        self.lines.append(f"{self.mark} again")

    def end(self, ts_ns: int, reason: str) -> None:
        self.lines.append(f"{self.mark} end {reason}")


class Talk:
    """A connection whose other protocols are `Heard`."""

    def __init__(self, *, is_midstream: bool = False) -> None:
        self.heard: list[Heard] = []
        self.exchanges: list[Exchange] = []
        self.undecoded: list[str] = []
        self.anomalies: list[str] = []
        self.pipeline = Pipeline(self.exchanges.append, lambda secret: secret, shield=False)

        def make(flow: Flow, upgrade: Upgrade | None = None) -> Heard:
            self.heard.append(Heard(flow, upgrade))
            return self.heard[-1]

        protocols = Protocols(sniffed={"http2": make}, upgraded={"chat": make, "connect": make})
        flow = Flow("1.1.1.1:1", "2.2.2.2:2", 0, is_midstream=is_midstream)
        self.connection = Connection(
            flow,
            self.pipeline._assembly,
            self.undecoded.append,
            self.anomalies.append,
            protocols=protocols,
        )

    def say(self, side: str, data: bytes) -> Talk:
        (self.connection.first if side == ">" else self.connection.second).data(1, data)
        return self

    def end(self) -> list[str]:
        self.connection.first.end(2, "fin")
        self.connection.second.end(2, "fin")
        self.connection.close(2, "fin")
        return self.heard[0].lines if self.heard else []


ENDS = ["> end fin", "< end fin", "close fin"]


def test_both_directions_are_handed_over_with_what_was_peeked_at() -> None:
    talk = Talk().say("<", b"\x16").say(">", PREFACE[:9]).say(">", PREFACE[9:] + b"abc").say("<", b"def").say(">", b"g")
    preface = (PREFACE + b"abc").decode()
    assert talk.end() == [f"> first {preface!r}", "< first '\\x16'", "< 'def'", "> 'g'", *ENDS]
    assert talk.undecoded == []


def test_what_was_passed_over_before_is_a_gap() -> None:
    talk = Talk(is_midstream=False).say("<", b"x\n" * 500)
    lines = talk.say(">", PREFACE).end()
    assert lines[1:3] == ["< gap None", "< first 'x\\n" + "x\\n" * 15 + "'"]


def test_an_end_before_the_protocol_was_known_is_told() -> None:
    talk = Talk()
    talk.connection.second.end(1, "reset")
    assert talk.say(">", PREFACE).heard[0].lines[1:] == ["< end reset"]


def test_all_that_a_connection_is_told_reaches_its_protocol() -> None:
    talk = Talk().say(">", PREFACE)
    talk.connection.second.gap(1, 7)
    talk.connection.first.other(1, b"o")
    talk.connection.anomaly("tcp_reset")
    talk.connection.shed()
    talk.connection.first.again()
    assert talk.end()[1:] == ["< gap 7", "> other 'o'", "anomaly tcp_reset", "shed", "> again", *ENDS]
    assert talk.anomalies == []


def test_a_protocol_that_is_not_decoded_is_counted_and_ignored() -> None:
    talk = Talk().say(">", b"\x16\x03\x01\x02\x00").say("<", PREFACE)
    assert (talk.end(), talk.undecoded) == ([], ["tls"])


@pytest.mark.parametrize("cut", range(1, len(SWITCH + b"hello"), 7))
def test_an_upgrade_hands_over_what_follows_its_heads(cut: int) -> None:
    talk = Talk().say(">", CALL)
    answer = SWITCH + b"hello"
    talk.say("<", answer[:cut]).say("<", answer[cut:]).say(">", b"GET / HTTP/1.1\r\n\r\n").say("<", b"HTTP/1.1 200 OK\r\n\r\n")
    lines = talk.end()
    assert "".join(line.removeprefix("< ").removeprefix("first ").strip("'") for line in lines if line.startswith("<")).startswith("hello")
    assert lines[-4:] == ["< " + repr("HTTP/1.1 200 OK\r\n\r\n"), *ENDS]
    upgrade = talk.heard[0].upgrade
    assert upgrade is not None
    assert upgrade.request is not None
    assert (upgrade.name, upgrade.request.target, upgrade.client_is_first) == ("chat", "/live", True)
    assert [(e.method, e.status, e.completeness) for e in talk.exchanges] == [("GET", 101, "complete")]


def test_an_upgrade_that_is_answered_before_its_body_has_come_keeps_the_body() -> None:
    call = b"POST /live HTTP/1.1\r\nUpgrade: chat\r\nContent-Length: 6\r\n\r\nabc"
    lines = Talk().say(">", call).say("<", SWITCH + b"hello").say(">", b"defPRI").say(">", b"!").end()
    assert lines == ["< first 'hello'", "> first 'PRI'", "> '!'", *ENDS]


def test_a_tunnel_through_a_proxy_is_handed_over() -> None:
    talk = Talk().say("<", b"CONNECT a:443 HTTP/1.1\r\n\r\n").say(">", b"HTTP/1.1 200 OK\r\n\r\n").say("<", b"\x16\x03").say(">", b"\x16")
    assert talk.end() == ["< first '\\x16\\x03'", "> first '\\x16'", *ENDS]
    upgrade = talk.heard[0].upgrade
    assert upgrade is not None
    assert (upgrade.name, upgrade.client_is_first) == ("connect", False)


def test_an_upgrade_to_what_is_not_decoded_is_ignored() -> None:
    talk = Talk().say(">", CALL).say("<", SWITCH.replace(b"chat", b"tea")).say("<", b"HTTP/1.1 200 OK\r\n\r\n")
    assert (talk.end(), len(talk.exchanges)) == ([], 1)
