"""What the receiver tells the first decoder, over their socket pair: each message behind its length."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from llmsec_agent.receiving.admission import Peer
from llmsec_tap.model import Exchange

LENGTH: Final = struct.Struct("!I")


class Received(msgspec.Struct, tag=True):
    """A record that was admitted."""

    peer: Peer
    exchange: Exchange


class Counts(msgspec.Struct, tag=True):
    """Connections now, and what was refused since the start, by reason."""

    clients: int
    refused: dict[str, int]


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Received | Counts).decode
