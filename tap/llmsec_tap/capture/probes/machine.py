"""The machines whose programs can be probed. A host probes those of its own: another's, which an emulator maps, are data to its kernel."""

from __future__ import annotations

import os
from typing import Final, Protocol

from llmsec_tap.capture.probes import arm64, x86


class Machine(Protocol):
    """What is known of a machine's code and files."""

    @property
    def ELF_MACHINE(self) -> int: ...  # noqa: N802
    @property
    def NAME(self) -> str: ...  # noqa: N802
    @property
    def MULTIARCH(self) -> str:  # noqa: N802
        """Debian's name of the folder of its libraries."""
        ...

    @property
    def LINKER(self) -> str: ...  # noqa: N802
    @property
    def ALIGNMENT(self) -> int:  # noqa: N802
        """Of instructions, in bytes."""
        ...

    def returns(self, code: bytes) -> list[int]: ...
    def begins(self, code: bytes) -> bool: ...
    def ends(self, before: bytes) -> bool: ...
    def falls_on(self, before: bytes, code: bytes) -> bool: ...


MACHINES: Final[dict[str, Machine]] = {"x86_64": x86, "aarch64": arm64}
HOST: Final = MACHINES.get(os.uname().machine, MACHINES["x86_64"])


def library_folders() -> tuple[str, ...]:
    """Where a host keeps its libraries, in the order of its loader."""
    return (
        f"/lib/{HOST.MULTIARCH}", f"/usr/lib/{HOST.MULTIARCH}", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib",
    )  # fmt: skip
