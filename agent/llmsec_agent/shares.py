"""How the memory cap of a tap is divided: over its decoders, and within each. All of it in one place, so that the sum can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from llmsec_tap import limits
from llmsec_tap.errors import ConfigError

# What a decoder needs to do its work: some 110 MiB are the interpreter, libraries of the store and the ring, and a quarter of a cap is kept
# free. And what it should have where it is up to us how many there are.
LEAST_BYTES: Final = 192 * limits.MIB
_FAIR_BYTES: Final = 256 * limits.MIB
# One decoder takes a core, its detection another, and the observed processes are what the host is for.
_CPUS_A_DECODER: Final = 4
_MOST_BY_OURSELVES: Final = 4
_LEAST_RING_BYTES: Final = limits.MIB


def decoders(wanted: int | Literal["auto"], memory_cap_bytes: int, cpus: int) -> int:
    """How many processes decode. Raises ConfigError where the memory cap is too small for the number that is wanted."""
    if wanted == "auto":
        return max(1, min(cpus // _CPUS_A_DECODER, memory_cap_bytes // _FAIR_BYTES, _MOST_BY_OURSELVES))
    if wanted > 1 and memory_cap_bytes // wanted < LEAST_BYTES:
        raise ConfigError(
            f"{wanted} decoders share a memory cap of {memory_cap_bytes // limits.MIB} MiB, and each needs {LEAST_BYTES // limits.MIB}",
            f"Give {wanted * LEAST_BYTES // limits.MIB} MiB or more, or fewer decoders.",
        )
    return wanted


def ring_of_each(ring_bytes: int, count: int) -> int:
    """A power of two, as the kernel wants it: together no more than one ring was, but a MiB each at least, unless that one was smaller."""
    share = 1 << ((ring_bytes // count).bit_length() - 1)
    return max(share, min(ring_bytes, _LEAST_RING_BYTES))


@dataclass(frozen=True)
class Shares:
    """Bytes that each part may hold, of a cap for one process. What is left is for code, libraries and what comes between two looks."""

    account: int  # what is held for traffic under way (llmsec_tap.account)
    queue: int  # between the threads that read and the one that decodes
    detection: int  # texts that wait for detection; they are kept twice, as text and as the message that carries them
    lane: int  # of each of up to two sinks

    @classmethod
    def of(cls, memory_cap_bytes: int) -> Shares:
        return cls(
            account=memory_cap_bytes * limits.ACCOUNT_BYTES // limits.MEMORY_CAP_BYTES,
            queue=min(limits.MAX_QUEUE_BYTES, memory_cap_bytes // 8),
            detection=memory_cap_bytes // 16,
            lane=memory_cap_bytes // 32,
        )

    @property
    def total(self) -> int:
        return self.account + self.queue + 2 * self.detection + 2 * self.lane
