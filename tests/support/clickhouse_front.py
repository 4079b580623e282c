"""The real ClickHouse engine (chdb) behind ClickHouse's HTTP interface, for the client library and for failures made on purpose.

`python clickhouse_front.py FOLDER PORT` prints its port. A process of its own: the engine takes memory and threads that a test should not have.
POST /llmsec-test/fail sets what happens to the next inserts: `{"how": …, "times": N}`, with one of ANSWERS, or `cut` (nothing is stored and no
answer comes), `half` (the connection ends while the rows come), `after` (the rows are stored and the answer is lost), `slow`, `none`.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_FORMATS = re.compile(rb"\bFORMAT\s+(\w+)\s*$", re.IGNORECASE)
_INSERT = re.compile(rb"\s*INSERT\s+INTO", re.IGNORECASE)
# Of the interface, not of the engine.
_TRANSPORT = {
    *("query", "database", "user", "password", "compress", "decompress", "session_id", "query_id", "client_protocol_version"),
    *("buffer_size", "wait_end_of_query", "send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression"),
    *("cancel_http_readonly_queries_on_client_close", "async_insert", "wait_for_async_insert", "http_response_buffer_size"),
}
PASSWORD = "correct horse"
# How a server says no: status, body and ClickHouse's number of the error, where it says one.
ANSWERS: dict[str, tuple[int, bytes, str | None]] = {
    "refuse": (500, b"Code: 252. DB::Exception: Too many parts (300). (TOO_MANY_PARTS)", "252"),
    "full": (500, b"Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)", "243"),
    "read-only": (500, b"Code: 164. DB::Exception: llmsec: Cannot execute query in readonly mode. (READONLY)", "164"),
    "no right": (403, b"Code: 497. DB::Exception: llmsec: Not enough privileges. (ACCESS_DENIED)", "497"),
    "wrong password": (403, b"Code: 516. DB::Exception: llmsec: Authentication failed. (AUTHENTICATION_FAILED)", "516"),
    "unauthorized": (401, b"Unauthorized", None),
    "internal": (500, b"Internal Server Error", None),
    "garbage": (502, b"<html>Bad gateway</html>", None),
}


def serve(folder: str, port: int) -> None:
    import chdb

    root = chdb.connect(folder)
    root.query("CREATE DATABASE IF NOT EXISTS `default`")
    lock = threading.Lock()
    failing: dict[str, Any] = {"how": "none", "times": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-ClickHouse-Summary", json.dumps({"written_rows": "0"}))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(200, b"Ok.\n")

        def do_POST(self) -> None:
            if failing["how"] == "half" and failing["times"] > 0 and "INSERT" in self.path.upper():
                failing["times"] -= 1
                self.rfile.read(100)
                self.close_connection = True
                return
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                body = b"".join(self.chunks())
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            if url.path == "/llmsec-test/fail":
                failing.update(json.loads(body))
                self.answer(200, b"")
                return
            arguments = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            if "wrong" in self.headers.get("Authorization", "") or self.is_refused():
                self.answer(
                    403,
                    b"Code: 516. DB::Exception: llmsec: Authentication failed. (AUTHENTICATION_FAILED)",
                    X_ClickHouse_Exception_Code="516",
                )
                return
            if "query" in arguments:
                statement, data = arguments["query"].encode(), body
            else:
                statement, _, data = (
                    body.partition(b"\n") if _INSERT.match(body) and b"FORMAT" in body.split(b"\n", 1)[0] else (body, b"", b"")
                )
            is_insert = bool(_INSERT.match(statement)) and bool(_FORMATS.search(statement.strip()))
            how = "none"
            if is_insert and failing["times"] > 0:
                failing["times"] -= 1
                how = failing["how"]
            if how in ANSWERS:
                status, said, code = ANSWERS[how]
                self.answer(status, said, **({"X_ClickHouse_Exception_Code": code} if code else {}))
            elif how == "cut":
                self.close_connection = True
            else:
                if how == "slow":
                    time.sleep(3)
                self.run(statement, data, arguments, lost=how == "after")

        def is_refused(self) -> bool:
            import base64

            given = self.headers.get("Authorization", "")
            return given.startswith("Basic ") and b"wrong" in base64.b64decode(given[6:])

        def chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def run(self, statement: bytes, data: bytes, arguments: dict[str, str], *, lost: bool) -> None:
            settings = {name: value for name, value in arguments.items() if name not in _TRANSPORT and not name.startswith("param_")}
            parameters = {name[6:]: value for name, value in arguments.items() if name.startswith("param_")}
            found = _FORMATS.search(statement.strip())
            form = found[1].decode() if found else arguments.get("default_format", self.headers.get("X-ClickHouse-Format", "TabSeparated"))
            settings.pop("default_format", None)
            readonly = settings.pop("readonly", None)
            encoding = self.headers.get("Content-Encoding", "")
            if data and encoding:
                data = unpacked(data, encoding)
            try:
                with lock:
                    connection = chdb.connect(folder)
                    try:
                        if database := arguments.get("database"):
                            connection.query(f"USE `{database}`")
                        for name, value in settings.items():
                            connection.query(f"SET {name} = '{value}'")
                        if readonly:
                            connection.query(f"SET readonly = {int(readonly)}")
                        if _INSERT.match(statement) and found and data:
                            path = Path(folder).parent / "insert.bin"
                            path.write_bytes(data)
                            head = statement.strip()[: found.start()].decode()
                            result = connection.query(f"{head} FROM INFILE '{path}' FORMAT {form}")
                        elif parameters:
                            result = connection.query(statement.decode(), form, params=parameters)
                        else:
                            result = connection.query(statement.decode(), form)
                        body = result.bytes() if result is not None else b""
                    finally:
                        connection.close()
            except Exception as fault:  # noqa: BLE001 - whatever the engine says is the answer
                text = str(fault).encode()
                code = re.search(rb"Code: (\d+)", text)
                self.answer(500, text, X_ClickHouse_Exception_Code=code[1].decode() if code else "1000")
                return
            if lost:
                self.close_connection = True
                return
            self.answer(200, body, X_ClickHouse_Format=form, X_ClickHouse_Timezone="UTC")

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def unpacked(data: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if encoding == "lz4":
        import lz4.frame

        return bytes(lz4.frame.decompress(data))
    raise ValueError(encoding)


class Server:
    """A server to test with. `new_url` names a database that nobody has made."""

    is_front = False

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")

    def url(self, database: str) -> str:
        return f"{self._base}/{database}"

    def new_url(self) -> str:
        return self.url(f"llmsec_test_{secrets.token_hex(6)}")


class Front(Server):
    """The engine of this file; `fail` has the next inserts fail."""

    is_front = True

    def __init__(self, port: int) -> None:
        super().__init__(f"clickhouse://llmsec@127.0.0.1:{port}")
        self.port = port

    def fail(self, how: str, times: int = 1) -> None:
        data = json.dumps({"how": how, "times": times}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}/llmsec-test/fail", data=data)):
            pass


@contextlib.contextmanager
def running(folder: Path, port: int = 0) -> Iterator[Front]:
    """It is killed at the end. `port`: where one that was killed before was."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder / "db"), str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield Front(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def copy_folder(root: Path, url: str) -> None:
    """Every row of a folder into the database, by the shortest way."""
    from llmsec_tap.storage.clickhouse.address import parse
    from llmsec_tap.storage.clickhouse.client import connect

    client, _ = connect(parse(url))
    for pattern, table in (("day=*/part-*.parquet", "exchange_rows"), ("taps/tap-*.parquet", "tap_rows")):
        for part in root.glob(f"exchanges/{pattern}"):
            client.raw_insert(table, insert_block=part.read_bytes(), fmt="Parquet")
    client.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
