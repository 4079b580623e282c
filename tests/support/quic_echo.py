"""A real QUIC peer: `serve PORT CERT KEY` answers each stream with what it received; `ask PORT CERT TEXT` prints the answer."""

from __future__ import annotations

import asyncio
import ssl
import sys

from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"echo " + await reader.read())
    writer.write_eof()


async def main() -> None:
    mode, port, cert = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    configuration = QuicConfiguration(is_client=mode == "ask", alpn_protocols=["echo"])
    if mode == "serve":
        configuration.load_cert_chain(cert, sys.argv[4])
        await serve(
            "127.0.0.1", port, configuration=configuration, stream_handler=lambda r, w: tasks.add(asyncio.ensure_future(echo(r, w)))
        )
        print("ready", flush=True)
        await asyncio.Future()
    configuration.verify_mode = ssl.CERT_NONE
    async with connect("127.0.0.1", port, configuration=configuration) as client:
        reader, writer = await client.create_stream()
        writer.write(sys.argv[4].encode())
        writer.write_eof()
        print((await reader.read()).decode())


tasks: set[asyncio.Future[None]] = set()
asyncio.run(main())
