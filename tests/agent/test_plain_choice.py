"""Whether plain HTTP of processes is captured: what the settings say, and what is said where it cannot be."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from llmsec_agent import attach as attaching
from llmsec_agent import summary
from llmsec_agent.capture_settings import looks_at_plain
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, Loader
from llmsec_tap.capture.probes.selection import Selection
from llmsec_tap.capture.probes.targets import TargetFinder
from llmsec_tap.counters import Sample, Snapshot
from llmsec_tap.errors import KernelError
from llmsec_tap.journal import Journal
from support.journal import Said


@pytest.mark.parametrize(
    ("chosen", "interfaces", "looks"),
    [("auto", (), True), ("auto", ("lo",), False), (True, ("lo",), True), (False, (), False)],
)
def test_an_interface_wins_unless_plain_is_asked_for(chosen: bool | Literal["auto"], interfaces: tuple[str, ...], looks: bool) -> None:
    assert looks_at_plain(chosen, interfaces=interfaces) is looks


class WithoutPlain:
    """A loader that cannot read it."""

    name, method, plain = "bcc", "perf", False
    is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def __getattr__(self, _name: str) -> Any:
        return lambda *_arguments: None


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> WithoutPlain:
    made = WithoutPlain()

    def open_loader(_backend: str, settings: KernelSettings, _journal: Journal) -> Loader:
        assert settings.plain
        return made

    monkeypatch.setattr(attaching, "open_loader", open_loader)
    monkeypatch.setattr(attaching.Observed, "start", lambda _self: None)
    return made


def test_where_plain_cannot_be_read_auto_says_so_and_goes_on(loader: WithoutPlain) -> None:
    said = Said()
    attaching.attach(Selection(everything=True), TargetFinder(), "auto", said, ring_bytes=4096, plain="auto")
    assert not loader.is_closed
    assert said.texts[0] == (
        "plain HTTP of processes is not captured (the backend bcc does not read it); --iface reads it from an interface"
    )


def test_where_plain_cannot_be_read_and_was_asked_for_nothing_is_left_behind(loader: WithoutPlain) -> None:
    with pytest.raises(KernelError, match="plain HTTP of processes cannot be captured: the backend bcc does not read it"):
        attaching.attach(Selection(everything=True), TargetFinder(), "auto", Said(), ring_bytes=4096, plain=True)
    assert loader.is_closed


@pytest.mark.parametrize(
    ("calls", "plain", "interfaces", "said"),
    [
        (5, True, (), "is not the traffic of a language model"),
        (0, True, (), "nor spoke plain HTTP"),
        (0, False, (), "plain HTTP was not looked at (--plain, or --iface)"),
        (0, False, ("lo",), ""),
    ],
)
def test_why_there_is_no_exchange(calls: int, plain: bool, interfaces: tuple[str, ...], said: str) -> None:
    counts = Snapshot([lambda: [Sample("llmsec_kernel_calls_total", calls)]])
    assert said in " ".join(summary.why_nothing(counts, plain=plain, interfaces=interfaces, observes=True))


def test_the_summary_tells_plain_calls_from_those_of_tls() -> None:
    values = {"calls": 30, "bytes": 5000, "plain_calls": 10, "plain_bytes": 2000, "unseen_sockets": 3}
    samples = [Sample(f"llmsec_kernel_{name}_total", value) for name, value in values.items()]
    samples += [Sample("llmsec_connections_total", 4, (("source", "tls"),)), Sample("llmsec_connections_total", 2, (("source", "plain"),))]
    first, second = summary.kernel(Snapshot([lambda: samples]))
    assert first.startswith("seen 20 TLS calls (3,000 bytes), 4 connections; 10 plain calls (2,000 bytes), 2 connections; decoded ")
    assert second.startswith("3 sockets that began by io_uring")
