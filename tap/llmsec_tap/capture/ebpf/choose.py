"""Which loader runs: `core` unless it cannot, and what was chosen and why, for the user to read."""

from __future__ import annotations

from dataclasses import replace

from llmsec_tap.capture.ebpf.core import CoreLoader, supports_uprobe_multi
from llmsec_tap.capture.ebpf.loader_api import KernelSettings, Loader
from llmsec_tap.errors import KernelError
from llmsec_tap.journal import Journal


def open_loader(backend: str, settings: KernelSettings, journal: Journal) -> Loader:
    """`backend` is auto, core or bcc. Raises KernelError where none can be loaded, with the reason of each."""
    if backend == "bcc":
        return _bcc(settings)
    try:
        loader = _core(settings)
    except KernelError as fault:
        if backend == "core" or fault.is_refusal:  # what the kernel forbids to one loader it forbids to the other
            raise
        journal.warning("backend_refused", f"backend core cannot be used: {fault}; trying bcc", backend="core")
        try:
            bcc = _bcc(settings)
        except KernelError as second:
            raise KernelError(f"{fault}; and {second}", fault.hint) from None
        journal.info("backend", "backend bcc, because core cannot be loaded here", backend="bcc")
        return bcc
    why = "chosen by --backend" if backend == "core" else "the kernel has BTF and libbpf is installed"
    journal.info("backend", f"backend core ({loader.method}): {why}", backend="core", method=loader.method)
    return loader


def _core(settings: KernelSettings) -> Loader:
    """Without plain HTTP where this kernel does not take the programs for it: what they need is newer than the rest."""
    try:
        return CoreLoader(settings, multi=supports_uprobe_multi())
    except KernelError as fault:
        if fault.is_refusal or not settings.plain:
            raise
    return CoreLoader(replace(settings, plain=False), multi=supports_uprobe_multi())


def _bcc(settings: KernelSettings) -> Loader:
    from llmsec_tap.capture.ebpf.bcc import BCCLoader  # noqa: PLC0415 - imports the distribution's bcc, 0.1 s and a compiler

    return BCCLoader(settings)
