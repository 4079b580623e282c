"""Tools of MCP servers whose descriptions changed after they were first seen: what somebody approved is not what the model reads now.

It is a fact on the record (anomaly `mcp_tool_changed`), and detection makes a finding of it. What is known is of this run, in bounded memory: the
first description that is seen of a tool is taken for the approved one. A server is an address and a path.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Final

from llmsec_tap.model import AnomalyCount, Exchange

_MAX_SERVERS: Final = 1024
_MAX_TOOLS: Final = 512
_MAX_VARIANTS: Final = 8  # of one tool; each is said once
_MAX_TEXTS: Final = 4096


class _Server:
    __slots__ = ("texts", "tools")

    def __init__(self) -> None:
        self.tools: dict[bytes, set[bytes]] = {}  # by the hash of the name
        self.texts: set[bytes] = set()  # of schemas, whichever tool they are of


class ToolLists:
    def __init__(self) -> None:
        self._servers: OrderedDict[bytes, _Server] = OrderedDict()

    def look(self, exchange: Exchange) -> None:
        """Mark a list of tools in which one of those known says something new."""
        if exchange.provider != "mcp" or not exchange.request.tools:
            return
        name = _digest(f"{exchange.server} {(exchange.path or '').partition('?')[0]}")  # strangers choose how long names are
        server = self._servers.get(name)
        if server is None:
            server = self._servers[name] = _Server()
            if len(self._servers) > _MAX_SERVERS:
                self._servers.popitem(last=False)
        self._servers.move_to_end(name)
        texts = {_digest(other.text) for other in exchange.other_texts if other.path.startswith("response")}
        names = [_digest(tool.name) for tool in exchange.request.tools]
        is_all_known = all(one in server.tools for one in names)
        changed = bool(is_all_known and not texts <= server.texts)
        for one, tool in zip(names, exchange.request.tools, strict=True):
            variants = server.tools.get(one)
            said = _digest(tool.description or "")
            if variants is None:
                if len(server.tools) < _MAX_TOOLS:
                    server.tools[one] = {said}
            elif said not in variants:
                changed = True
                if len(variants) < _MAX_VARIANTS:
                    variants.add(said)
        if len(server.texts) + len(texts) <= _MAX_TEXTS:
            server.texts |= texts
        if changed:
            exchange.anomalies = [*exchange.anomalies, AnomalyCount(name="mcp_tool_changed", count=1)]


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
