"""How the memory cap of a decoding process is divided. All of it in one place, so that the sum can be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from llmsec_tap import limits


@dataclass(frozen=True)
class Shares:
    """Bytes that each part may hold, of a cap for the whole process. What is left is for code, libraries and what comes between two looks."""

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
