"""TLS in a capture file, opened with a key log: ours beside tshark and the same traffic in the clear, in one run.

  python bench/tls.py [--megabytes 50] [--rounds 3]

The capture is made here: answers of 256 kB in 16 kB records, then answers streamed as events of one record each, by OpenSSL in memory.
The best CPU time of the rounds is taken.
"""

from __future__ import annotations

import argparse
import ssl
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from replay import run

from support.tls_talk import in_memory
from support.wire import Talk, pcap

_BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi there"}]}'
_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole() -> list[bytes]:
    text = b"word " * 52_000
    body = (
        b'{"id":"c","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"%b"}}]}'
        % text
    )
    return [_HEAD % b"application/json" + chunk(body) + b"0\r\n\r\n"]


def streamed() -> list[bytes]:
    event = b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
    return [_HEAD % b"text/event-stream", *[chunk(event)] * 1000, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


def captures(folder: Path, name: str, answer: list[bytes], megabytes: int) -> tuple[Path, Path, Path, float]:
    """The capture, the same in the clear, the key log, and the megabytes of plaintext."""
    size = sum(map(len, answer))
    number = max(1, megabytes * 1_000_000 // size)
    talk = [(0, _REQUEST % (len(_BODY), _BODY)), *((1, piece) for piece in answer)]
    (recorded,) = in_memory(folder, talk * number, version=ssl.TLSVersion.TLSv1_3)
    clear = Talk().open()
    for side, data in talk * number:
        clear.say(side, data)
    paths = folder / f"{name}.pcap", folder / f"{name}-clear.pcap", folder / f"{name}.keys"
    paths[0].write_bytes(pcap(recorded.frames()))
    paths[1].write_bytes(pcap(clear.close().frames))
    paths[2].write_bytes(recorded.keys)
    return *paths, number * size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours = [str(Path(sys.executable).with_name("llmsec-analyze")), "replay", "--store", "none", "--format", "none", "--no-detect"]
    with tempfile.TemporaryDirectory() as made:
        for name, answer in (("whole", whole()), ("streamed", streamed())):
            sealed, clear, keys, size = captures(Path(made), name, answer, options.megabytes)
            commands = {
                "ours": [*ours, "--keylog", str(keys), str(sealed)],
                "ours, in the clear": [*ours, str(clear)],
                "tshark": [
                    "tshark",
                    "-r",
                    str(sealed),
                    "-o",
                    f"tls.keylog_file:{keys}",
                    "-Y",
                    "http",
                    "-T",
                    "fields",
                    "-e",
                    "http.response.code",
                ],
            }
            best = {who: min(run(command)[0] for _ in range(options.rounds)) for who, command in commands.items()}
            for who, seconds in best.items():
                print(f"{name:9} {who:20} {seconds:7.2f} CPU s {size / seconds:8.1f} MB/s")


if __name__ == "__main__":
    main()
