"""Programs whose symbols are stripped, by build id, with the places of their TLS functions.

Each was found by scripts/find-boringssl and is tapped live in tests/kernel/test_clients.py or test_envoy.py before it comes in here. `--offsets-file`
adds others. `bun build --compile` puts the same program before an application's own code, so agents that are shipped as one file
built with these releases are found, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Offsets:
    """Places in a file. Without `new`, TLS objects that are used again are told apart by their sockets alone."""

    read: int
    write: int
    library: str = "given offsets"
    new: int | None = None


KNOWN_BUILD_IDS: Final[dict[str, Offsets]] = {
    "b5188e4f53b53f3a346614bd78ba53f2ff234402": Offsets(0x237E500, 0x23FFC30, "BoringSSL in Bun 1.4.5", 0x2360EE0),
    "588d7307f333293c728b74df19b7323c20736899": Offsets(0x265F3B0, 0x26F55C0, "BoringSSL in Bun 1.4.4", 0x2640490),
    "6eb0d2d97489ec1b4e1584a004f5de443d97a41b": Offsets(0x5A796B0, 0x5A79A60, "BoringSSL in Envoy 1.39.3", 0x5A784C0),
}
