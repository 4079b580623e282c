"""`llmsec-tap capture`: selection, the warden, and the decoder that it is forked from. It imports little before the probes stand."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmsec_agent.cli.formats import RunFormat
from llmsec_tap import limits

if TYPE_CHECKING:
    from llmsec_agent.config import Loaded

# storage.DEFAULT_STORE, without the import: it would stand between the command and its probes for 50 ms. A test compares.
DEFAULT_STORE = "llmsec-data"


class Backend(StrEnum):
    AUTO = "auto"
    CORE = "core"
    BCC = "bcc"


def register(app: typer.Typer) -> None:
    app.command()(capture)


def _offset(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number (decimal, or hexadecimal with 0x)") from None


def capture(
    pid: Annotated[list[int] | None, typer.Option("--pid", min=1, help="Observe this process; may be repeated.", metavar="PID")] = None,
    follow: Annotated[bool, typer.Option("--follow-children/--no-follow-children", help="Observe what it forks, too.")] = True,
    comm: Annotated[
        list[str] | None, typer.Option("--comm", help="Processes of this name (/proc/PID/comm), also later ones.", metavar="NAME")
    ] = None,
    container: Annotated[
        list[str] | None, typer.Option("--container", help="Processes of this container (the id's first digits do).", metavar="ID")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every process, also later ones.")] = False,
    plain: Annotated[
        bool | None,
        typer.Option("--plain/--no-plain", help="Plain HTTP of these processes, too; without either: unless --iface is given."),
    ] = None,
    iface: Annotated[
        list[str] | None, typer.Option("--iface", help="Also read plain HTTP from this interface (lo, eth0, any).", metavar="IF")
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option("--port", min=1, max=65535, help="With --iface: only this TCP port; may be repeated.")
    ] = None,
    write: Annotated[
        str | None, typer.Option("--write", help="Also write the decrypted traffic as an ordinary capture file.", metavar="FILE.pcapng")
    ] = None,
    write_secrets: Annotated[
        bool, typer.Option("--write-secrets", help="With --write: keep credentials in the file, which are masked otherwise.")
    ] = False,
    output: Annotated[
        RunFormat, typer.Option("--format", help="What is printed for each exchange; events: also of those that have not ended.")
    ] = RunFormat.TABLE,
    store: Annotated[
        str, typer.Option("--store", envvar="LLMSEC_STORE", metavar="FOLDER", help="Where exchanges are kept; `none` keeps nothing.")
    ] = DEFAULT_STORE,
    content: Annotated[bool, typer.Option("--content/--no-content", help="Keep texts; without, only counts, names and times.")] = True,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json that counts tokens where the server states none.")
    ] = None,
    detect: Annotated[
        bool, typer.Option("--detect/--no-detect", help="Look for secrets, personal data, prompt injection and unsafe output.")
    ] = True,
    redact: Annotated[bool, typer.Option("--redact", help="Mask secrets and personal data in what is printed and stored.")] = False,
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="LLMSEC_CONFIG", metavar="FILE", help="Configuration (YAML); its `security` part counts here."),
    ] = None,
    duration: Annotated[float | None, typer.Option("--duration", min=0.0, help="Stop after so many seconds.", metavar="S")] = None,
    backend: Annotated[
        Backend, typer.Option("--backend", help="Which eBPF loader; auto takes core, then bcc, and says why.")
    ] = Backend.AUTO,
    fast_probes: Annotated[
        bool,
        typer.Option(
            "--fast-probes/--no-fast-probes", help="Probe libssl's internal functions in each file where that is sure: a third of the cost."
        ),
    ] = True,
    read_offset: Annotated[
        str | None,
        typer.Option("--ssl-read-offset", help="Where SSL_read is in the program's file, if its symbols are stripped.", metavar="N"),
    ] = None,
    write_offset: Annotated[
        str | None, typer.Option("--ssl-write-offset", help="Where SSL_write is in the program's file.", metavar="N")
    ] = None,
    offsets_file: Annotated[
        str | None, typer.Option("--offsets-file", help="TOML: build id = { read = N, write = N }, for stripped libraries.", metavar="FILE")
    ] = None,
    ring_size: Annotated[
        int, typer.Option("--ring-size", min=4, max=1 << 20, help="Buffer between kernel and tap, in KiB; a power of two.")
    ] = limits.RING_BYTES // limits.KIB,
    memory_cap: Annotated[
        int, typer.Option("--memory-cap", min=192, help="Resident memory at most, in MiB; the detection process is apart.")
    ] = limits.MEMORY_CAP_BYTES // limits.MIB,
    decoders: Annotated[
        str,
        typer.Option(
            "--decoders", help="Processes that decode, each connection in one of them; auto: one for four CPUs.", metavar="[N|auto]"
        ),
    ] = "1",
) -> None:
    """Capture the exchanges of running processes: decrypted at their TLS library by eBPF, plain ones at their sockets
    or from an interface.

    The observed processes are never stopped, changed or waited for. Ctrl-C takes the probes out, stores what is under way and
    prints a summary. Needs root, or CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_NET_RAW; `llmsec-tap check` tells what is missing.

    Example: llmsec-tap capture --pid 4242 --format jsonl
    """
    from llmsec_agent.attach import read_offsets
    from llmsec_agent.capture_settings import CaptureSettings, looks_at_plain, node_name
    from llmsec_agent.capturing import CapturePlan, capture_with
    from llmsec_agent.journals import journal
    from llmsec_agent.shares import decoders as decoders_for
    from llmsec_tap.capture.ebpf.loader_api import MAX_RINGS
    from llmsec_tap.capture.probes.selection import Selection
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.privileges import unprivileged_user

    selection = Selection(
        pids=tuple(pid or ()), comms=tuple(comm or ()), containers=tuple(container or ()), everything=everything, follow_forks=follow
    )
    if selection.is_empty and not iface:
        raise ConfigError("nothing to capture", "Choose processes (--pid, --comm, --container, --all) or an interface (--iface).")
    if (read_offset is None) != (write_offset is None):
        raise ConfigError("one offset is not enough", "Give both --ssl-read-offset and --ssl-write-offset.")
    if ring_size & (ring_size - 1):
        raise ConfigError(f"--ring-size {ring_size} is not a power of two", "For example 16384.")
    if port and not iface:
        raise ConfigError("--port needs --iface", "Name the interface; what is seen of processes is not chosen by port.")
    if write_secrets and write is None:
        raise ConfigError("--write-secrets needs --write", "Name the file.")
    if decoders != "auto" and not (decoders.isdecimal() and 0 < int(decoders) <= MAX_RINGS):
        raise ConfigError(f"--decoders {decoders} is neither auto nor a number from 1 to {MAX_RINGS}", "For example --decoders 2.")
    count = decoders_for("auto" if decoders == "auto" else int(decoders), memory_cap << 20, len(os.sched_getaffinity(0)))
    if write is not None and count > 1:
        raise ConfigError("--write needs one decoder", "Leave out --decoders: one process writes the file.")
    if redact and not detect:
        raise ConfigError("--redact needs detection", "Leave out --no-detect.")
    if redact:
        from llmsec_agent.cli.analyze.scan import need_detection

        need_detection(load(config, lambda _note: None).config.security, "--redact")
    plain_choice: bool | Literal["auto"] = "auto" if plain is None else plain
    given = None if read_offset is None or write_offset is None else (_offset(read_offset), _offset(write_offset))
    unprivileged_user()  # a wrong name ends the command before anything is attached
    finder = read_offsets(given, offsets_file, fast=fast_probes)
    raise typer.Exit(
        capture_with(
            CapturePlan(
                selection=selection,
                finder=finder,
                backend=backend.value,
                ring_bytes=ring_size * 1024,
                settings=CaptureSettings(
                    interfaces=tuple(iface or ()),
                    ports=frozenset(port) if port else None,
                    write=write,
                    write_secrets=write_secrets,
                    store=None if store == "none" else store,
                    content=content,
                    tokenizer=tokenizer,
                    memory_cap_bytes=memory_cap << 20,
                    duration_s=duration,
                    output=output.value,
                    node=node_name(),
                    plain=looks_at_plain(plain_choice, interfaces=tuple(iface or ())),
                ),
                decoders=count,
                plain=plain_choice,
                detect=detect,
                redact=redact,
                load=lambda report: load(config, report),
            ),
            journal(),
        )
    )


def load(config: str | None, report: Callable[[str], None]) -> Loaded:
    """What is wrong in the file is an error, whether it counts or not."""
    from llmsec_agent.config import load_all

    return load_all(config, report)
