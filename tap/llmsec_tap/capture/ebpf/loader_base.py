"""What the two loaders do alike once their programs are in the kernel: placing a plan's probes, and reading what comes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from llmsec_tap.capture.ebpf.loader_api import Attachment, ConnectionLoss, KernelTotals, ProbePlan
from llmsec_tap.capture.ebpf.maps import KernelMaps
from llmsec_tap.capture.ebpf.ring import Ring
from llmsec_tap.errors import KernelError


class KernelHalf(ABC):
    """See `Loader`. A loader sets `_maps` when it has loaded; its links are its own business."""

    _maps: KernelMaps

    def attach(self, plan: ProbePlan, pid: int | None) -> Attachment:
        """All probes of a plan or none: where one is refused, those before it are taken out again. Raises KernelError."""
        links: list[object] = []
        try:
            # Returns first: a call that is seen at its entry only would leave its arguments behind.
            for is_return in (True, False):
                self._place(plan, pid, links, is_return=is_return)
        except OSError as fault:
            for link in links:
                self._detach(link)
            raise self._refused(plan, fault) from None
        return Attachment(plan, pid, tuple(links))

    @abstractmethod
    def _place(self, plan: ProbePlan, pid: int | None, links: list[object], *, is_return: bool) -> None:
        """Place the entry or the return probes, adding each link as it is made. Raises OSError."""

    @abstractmethod
    def _refused(self, plan: ProbePlan, fault: OSError) -> KernelError: ...

    @abstractmethod
    def _detach(self, link: object) -> None:
        """Take out what one link holds; nothing where that has happened already."""

    def detach(self, attachment: Attachment) -> None:
        for link in attachment.links:
            self._detach(link)

    def watch(self, pid: int) -> None:
        self._maps.watch(pid)

    def unwatch(self, pid: int) -> None:
        self._maps.unwatch(pid)

    def select_comm(self, comm: str) -> None:
        self._maps.select_comm(comm)

    def deselect_comm(self, comm: str) -> None:
        self._maps.deselect_comm(comm)

    def consume(self) -> list[bytes]:
        return [record for ring in self._maps.rings for record in ring.consume()]

    def ring_descriptor(self, number: int) -> int:
        return self._maps.ring_descriptor(number)

    @property
    def ring_bytes(self) -> int:
        return self._maps.ring_bytes

    @property
    def processes(self) -> Ring:
        return self._maps.processes

    def totals(self) -> KernelTotals:
        return self._maps.totals()

    def losses(self) -> list[ConnectionLoss]:
        return self._maps.losses()
