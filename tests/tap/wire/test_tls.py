"""TLS in captures: real connections between OpenSSL and OpenSSL, opened with their key logs, cut, disordered, and closed."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time

import pytest

from llmsec_tap import limits
from llmsec_tap.capture.files.key_log import read_key_log
from llmsec_tap.errors import SourceError
from llmsec_tap.identity.credentials import fingerprinter
from llmsec_tap.model import Exchange
from llmsec_tap.pipeline import Pipeline
from llmsec_tap.wire.flow import Flow
from llmsec_tap.wire.tls.hello import read_client_hello
from llmsec_tap.wire.tls.key_log import KeyLog
from support.replay import KEY, replay
from support.tls_talk import NAME, Recorded, between_programs, in_memory
from support.wire import block, pcap, pcapng

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi there"}]}'
ANSWER = b'{"id":"c","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (
        len(BODY),
        BODY,
    )
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
TALK = [(0, REQUEST), (1, RESPONSE)]
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SUITES_12 = (
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "AES128-CCM",
    "AES256-CCM8",
)
SUITES_13 = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
    "TLS_AES_128_CCM_8_SHA256",
)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def fed(
    recorded: Recorded, *, keys: bytes = b"", step: int = 0, lost: tuple[int, int, int] | None = None
) -> tuple[list[Exchange], Pipeline]:
    """Through the pipeline in pieces of `step` bytes. `lost`: (side, from, to) of that side's bytes are a gap."""
    known = KeyLog()
    known.add(keys)
    found: list[Exchange] = []
    pipeline = Pipeline(found.append, fingerprinter(KEY), keys=known, shield=False)
    flow = pipeline.open_flow(Flow("10.1.0.7:40000", "10.2.0.9:443", 10**18, is_midstream=False))
    sides, at, now = (flow.first, flow.second), [0, 0], 10**18
    for side, data in recorded.pieces:
        now += 1_000_000
        for start in range(0, len(data), step or len(data)):
            piece = data[start : start + (step or len(data))]
            begin, at[side] = at[side], at[side] + len(piece)
            if lost is not None and lost[0] == side and begin < lost[2] and lost[1] < at[side]:
                sides[side].data(now, piece[: max(0, lost[1] - begin)])
                sides[side].gap(now, min(at[side], lost[2]) - max(begin, lost[1]))
                sides[side].data(now, piece[max(0, lost[2] - begin) :])
            else:
                sides[side].data(now, piece)
    for side in sides:
        side.end(now, "fin")
    flow.close(now, "fin")
    pipeline.close()
    assert pipeline.account.held == 0
    return found, pipeline


def says(found: list[Exchange]) -> list[tuple[str | None, str | None, str]]:
    return [(exchange.input_text, exchange.output_text, exchange.completeness) for exchange in found]


WHOLE = [("hi there", "hello", "complete")]


@pytest.mark.parametrize("suite", SUITES_12)
def test_records_of_tls_1_2_are_opened(tmp_path, suite):
    (recorded,) = in_memory(tmp_path, TALK, version=V12, ciphers=suite)
    for step in (0, 1, 7):
        found, pipeline = fed(recorded, keys=recorded.keys, step=step)
        assert says(found) == WHOLE
        assert not pipeline.anomalies
    tls = found[0].tls
    assert tls is not None
    assert (tls.version, tls.server_name, tls.alpn, tls.client_bytes) == ("TLS 1.2", NAME, "http/1.1", None)


@needs_openssl
@pytest.mark.parametrize("suite", SUITES_13)
def test_records_of_tls_1_3_are_opened(tmp_path, suite):
    def play(server: subprocess.Popen[bytes], client: subprocess.Popen[bytes]) -> None:
        typed(client, REQUEST, server)
        typed(server, RESPONSE, client)

    options = ["-tls1_3", "-ciphersuites", suite, "-quiet"]
    (recorded,) = between_programs(tmp_path, options, [(options, play)])
    for step in (0, 1):
        found, pipeline = fed(recorded, keys=recorded.keys, step=step)
        assert says(found) == WHOLE
        assert not pipeline.anomalies
    assert found[0].tls is not None
    assert found[0].tls.cipher_suite == suite


def typed(who: subprocess.Popen[bytes], data: bytes, reader: subprocess.Popen[bytes]) -> None:
    """Typed at one program until the other one has printed the end of it."""
    assert who.stdin is not None
    assert reader.stdout is not None
    who.stdin.write(data)
    who.stdin.flush()
    seen = b""
    while data[-20:] not in seen:
        more = reader.stdout.read1(65536)
        assert more
        seen += more


@needs_openssl
def test_keys_are_updated_in_the_middle_of_a_message(tmp_path):
    lines = b'{"model":"gpt-4o","messages":[{"role":"user","content":\n"hi there"}]}\n'
    head = REQUEST[: REQUEST.index(b"\r\n\r\n")].replace(str(len(BODY)).encode(), str(len(lines)).encode()) + b"\r\n\r\n"

    def play(server: subprocess.Popen[bytes], client: subprocess.Popen[bytes]) -> None:
        first, second = lines.split(b"\n", 1)
        typed(client, head + first + b"\n", server)
        assert client.stdin is not None
        client.stdin.write(b"K\n")
        client.stdin.flush()
        time.sleep(0.3)
        typed(client, second, server)
        typed(server, RESPONSE + b"\n", client)

    (recorded,) = between_programs(tmp_path, ["-tls1_3"], [([], play)])
    found, pipeline = fed(recorded, keys=recorded.keys)
    assert says(found) == WHOLE
    assert not {name for name in pipeline.anomalies if name.startswith("tls")}


@needs_openssl
def test_early_data_counts_where_the_server_takes_it(tmp_path):
    session, early = tmp_path / "session", tmp_path / "early"
    early.write_bytes(REQUEST)

    def play(server: subprocess.Popen[bytes], client: subprocess.Popen[bytes]) -> None:
        typed(server, RESPONSE, client)
        time.sleep(0.1)

    again = ["-quiet", "-sess_in", str(session), "-early_data", str(early)]
    # A session's early data is taken once (RFC 8446 section 8), so the third connection is refused.
    serve = ["-tls1_3", "-quiet", "-early_data", "-num_tickets", "1"]
    _, taken, refused = between_programs(tmp_path, serve, [(["-quiet", "-sess_out", str(session)], play), (again, play), (again, play)])
    found, pipeline = fed(taken, keys=taken.keys)
    assert says(found) == WHOLE
    assert not pipeline.anomalies
    found, pipeline = fed(refused, keys=refused.keys)
    assert [exchange.input_text for exchange in found] == [None]
    assert pipeline.anomalies["tls_early_data_refused"] == 1


def test_a_resumed_session_of_tls_1_2_is_opened_with_the_secret_that_was_logged_once(tmp_path):
    first, second = in_memory(tmp_path, TALK, version=V12, connections=2, logged=1)
    assert second.keys == b""
    found, _ = fed(second, keys=b"")
    assert found[0].is_connection
    capture = pcap(first.frames() + [(at + 10**12, frame) for at, frame in second.frames()])
    (tmp_path / "keys").write_bytes(first.keys)
    found, _ = replay(capture, keys=read_key_log(str(tmp_path / "keys")))
    assert says(found) == WHOLE * 2


def test_a_resumed_session_of_tls_1_3_is_opened(tmp_path):
    for recorded in in_memory(tmp_path, TALK, connections=2):
        found, _ = fed(recorded, keys=recorded.keys)
        assert says(found) == WHOLE


@pytest.mark.parametrize("version", [V12, V13])
def test_a_connection_without_secrets_is_one_record(tmp_path, version):
    (recorded,) = in_memory(tmp_path, TALK, version=version)
    (found,), pipeline = fed(recorded)
    assert (found.provider, found.completeness, found.risk_score, found.method) == ("openai", "unreadable", None, None)
    assert [anomaly.name for anomaly in found.anomalies] == ["tls_unread"]
    assert found.tls is not None
    sent = [sum(len(data) for side, data in recorded.pieces if side == wanted) for wanted in (0, 1)]
    assert [found.tls.client_bytes, found.tls.server_bytes] == sent
    assert (found.tls.server_name, found.tls.alpn_offered) == (NAME, ["http/1.1"])
    assert pipeline.protocols == {"tls": 1}
    assert pipeline.exchanges == 0


def test_a_suite_that_cannot_be_opened_is_said(tmp_path):
    (recorded,) = in_memory(tmp_path, TALK, version=V12, ciphers="AES128-SHA")
    (found,), _ = fed(recorded, keys=recorded.keys)
    assert found.is_connection
    assert found.tls is not None
    assert found.tls.cipher_suite == "0x002F"


def test_secrets_that_come_behind_the_packets_are_waited_for(tmp_path):
    first, second = in_memory(tmp_path, TALK, connections=2)
    both = first.keys + second.keys
    known = KeyLog()
    known.add(first.keys)  # some secrets are known, so more may come
    found: list[Exchange] = []
    pipeline = Pipeline(found.append, fingerprinter(KEY), keys=known, shield=False)
    flow = pipeline.open_flow(Flow("10.1.0.7:40000", "10.2.0.9:443", 10**18, is_midstream=False))
    for number, (side, data) in enumerate(second.pieces):
        (flow.first, flow.second)[side].data(10**18 + number, data)
    assert found == []
    pipeline.secrets(both)
    flow.close(10**18 + 99, "fin")
    assert says(found) == WHOLE


@pytest.mark.parametrize("version", [V12, V13])
def test_a_loss_costs_what_was_lost_and_the_next_exchange_is_read(tmp_path, version):
    (recorded,) = in_memory(tmp_path, TALK * 40, version=version)
    whole = sum(len(data) for side, data in recorded.pieces if side == 1)
    (keyed, _) = fed(recorded, keys=recorded.keys)
    assert says(keyed) == WHOLE * 40
    for size in (1, 300, 2000):
        found, pipeline = fed(recorded, keys=recorded.keys, lost=(1, whole // 2, whole // 2 + size))
        answers = [exchange.output_text for exchange in found]
        assert answers[:10] == ["hello"] * 10
        assert answers[-10:] == ["hello"] * 10
        assert len(found) == 40
        assert any(exchange.completeness == "gapped" for exchange in found)
        assert not pipeline.anomalies["tls_unopened"]


def test_the_secrets_of_a_pcapng_file_are_used(tmp_path):
    (recorded,) = in_memory(tmp_path, TALK)
    capture = pcapng(recorded.frames())
    secrets = block(10, (0x544C534B).to_bytes(4, "little") + len(recorded.keys).to_bytes(4, "little") + recorded.keys)
    at = int.from_bytes(capture[4:8], "little")
    assert says(replay(capture[:at] + secrets + capture[at:])[0]) == WHOLE
    assert replay(capture)[0][0].is_connection


def test_a_hello_in_pieces_and_behind_a_preamble_is_read(tmp_path):
    (recorded,) = in_memory(tmp_path, TALK)
    proxied = Recorded([(0, b"PROXY TCP4 192.0.2.7 10.2.0.9 51000 443\r\n"), *recorded.pieces])
    found, _ = fed(proxied, keys=recorded.keys)
    assert says(found) == WHOLE
    assert found[0].forwarded_client == "192.0.2.7:51000"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "holds no secret"),
        ("nonsense\n", "holds no secret"),
        ("CLIENT_RANDOM 00 11\n", "holds no secret"),
        (None, "cannot read the key log"),
    ],
)
def test_a_key_log_without_secrets_is_refused(tmp_path, text, error):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=error):
        read_key_log(str(path))


def test_a_key_log_has_a_bound(monkeypatch):
    monkeypatch.setattr(limits, "MAX_TLS_SECRETS", 3)
    keys = KeyLog()
    keys.add(b"\n".join(b"CLIENT_RANDOM %064x %096x" % (number, number) for number in range(10)) + b"\n# comment\n\xff\xfe\n")
    assert (keys.secrets, keys.left_out, keys.unread) == (3, 7, 1)


def test_ja4_is_that_of_the_specification():
    """The example of FoxIO's description: what a browser offers, in the order of no account."""
    suites = "1301 1302 1303 c02b c02f c02c c030 cca9 cca8 c013 c014 009c 009d 002f 0035"
    extensions = "001b 0000 0033 0010 4469 0017 002d 000d 0005 0023 0012 002b ff01 000b 000a 0015"
    algorithms = "0403 0804 0401 0503 0805 0501 0806 0601"

    def vector(data: bytes, size: int) -> bytes:
        return len(data).to_bytes(size, "big") + data

    def numbers(text: str) -> bytes:
        return bytes.fromhex(text.replace(" ", ""))

    values = {
        "0000": vector(b"\0" + vector(b"example.org", 2), 2),
        "0010": vector(vector(b"h2", 1) + vector(b"http/1.1", 1), 2),
        "000d": vector(numbers(algorithms), 2),
        "002b": vector(numbers("7a7a 0304 0303"), 1),
    }
    listed = b"".join(numbers(kind) + vector(values.get(kind, b""), 2) for kind in ["0a0a", *extensions.split()])
    body = b"\3\3" + bytes(32) + vector(b"", 1) + vector(numbers("8a8a " + suites), 2) + vector(b"\0", 1) + vector(listed, 2)
    assert read_client_hello(body).ja4 == "t13d1516h2_8daaf6152771_e5627efa2ab1"


@pytest.mark.tshark
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_opens_the_same(tmp_path):
    (recorded,) = in_memory(tmp_path, TALK * 3)
    capture, keys = tmp_path / "c.pcap", tmp_path / "keys"
    capture.write_bytes(pcap(recorded.frames()))
    keys.write_bytes(recorded.keys)
    command = [
        "tshark",
        "-r",
        str(capture),
        "-o",
        f"tls.keylog_file:{keys}",
        "-Y",
        "http.response",
        "-T",
        "fields",
        "-e",
        "http.response.code",
    ]
    by_tshark = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert by_tshark == [str(exchange.status) for exchange in replay(capture, keys=read_key_log(str(keys)))[0]] == ["200"] * 3


def test_hostile_records_neither_crash_nor_grow(tmp_path):
    (recorded,) = in_memory(tmp_path, TALK)
    whole = [b"".join(data for side, data in recorded.pieces if side == wanted) for wanted in (0, 1)]
    hello = whole[0][:200]
    hostile = [
        b"\x16\x03\x01\x00\x00" * 5000,
        b"\x16\x03\x01\x40\x00" + b"\x0b\xff\xff\xff" * 4096,
        b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" * 4096,
        hello + b"\x17\x03\x03\xff\xff" * 4000,
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00" * 100,
        b"\x14\x03\x03\x00\x01\x01" * 10_000,
        *(whole[0][:cut] for cut in range(7, 400, 7)),
    ]
    for data in hostile:
        for keys in (b"", recorded.keys):
            found, _ = fed(Recorded([(0, data), (1, whole[1]), (0, data)]), keys=keys)
            assert len(found) <= 1
