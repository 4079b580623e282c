"""`llmsec-tap top`: a live view in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(top)


def top(
    events: Annotated[
        str | None, typer.Argument(metavar="[-]", help="`-` reads the lines of `capture --format events` from standard input.")
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option("--pid", min=1, help="Capture this process; may be repeated. These options are those of `capture`.", metavar="PID"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow-children/--no-follow-children", help="Observe what it forks, too.")] = True,
    comm: Annotated[list[str] | None, typer.Option("--comm", help="Processes of this name, also later ones.", metavar="NAME")] = None,
    container: Annotated[list[str] | None, typer.Option("--container", help="Processes of this container.", metavar="ID")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every process, also later ones.")] = False,
    iface: Annotated[
        list[str] | None, typer.Option("--iface", help="Plain HTTP from this interface (lo, eth0, any).", metavar="IF")
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option("--port", min=1, max=65535, help="With --iface: only this TCP port; may be repeated.")
    ] = None,
    detect: Annotated[bool, typer.Option("--detect/--no-detect", help="Of a capture: look for what is dangerous.")] = True,
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="LLMSEC_CONFIG", metavar="FILE", help="Of a capture: configuration (YAML)."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            envvar="LLMSEC_STORE",
            metavar="STORE",
            help="A store to follow: a folder, or clickhouse://user@host/database. Of a capture: where it keeps exchanges; without, nowhere.",
        ),
    ] = None,
) -> None:
    """Watch who asks which model what, as it happens: processes and models with rates, the latest exchanges and findings, and what was lost.

    With processes or an interface it captures, as `llmsec-tap capture` does and with its rights; the screen itself is drawn without any. Else it
    follows the store that a capture or an agent writes, without root; opening a record is in the store's audit log. Needs the extra `top`. Keys: q quits, p pauses, / filters, Enter opens, s sorts, ? tells the others.

    Example: llmsec-tap top --comm python
    """
    from llmsec_agent.top.terminal import check_terminal
    from llmsec_tap.errors import ConfigError

    if events not in (None, "-"):
        raise ConfigError(f"top takes `-` or nothing, not {events!r}", "llmsec-tap top --store FOLDER follows a store")
    chosen = bool(pid or comm or container or everything or iface)
    if events == "-" and chosen:
        raise ConfigError("`-` reads the events of another capture", "leave out the processes and interfaces, or `-`")
    if events is None and store is None and not chosen:
        raise ConfigError(
            "nothing to watch",
            "choose processes (--pid, --comm, --container, --all) or an interface (--iface), name a store (--store), or pipe events into `top -`",
        )
    if port and not iface:
        raise ConfigError("--port needs --iface", "name the interface; what is seen of processes is not chosen by port")
    check_terminal(takes_input=events == "-")
    try:
        from llmsec_agent.top import watch
    except ImportError as fault:
        raise ConfigError(f"the live view needs the package {fault.name}", "pip install 'llmsec-trace[top]'") from None
    if chosen:
        from llmsec_agent.top.captured import watch_capture

        many = (("--pid", pid), ("--comm", comm), ("--container", container), ("--iface", iface), ("--port", port))
        options = [f"{name}={value}" for name, values in many for value in values or ()]
        options += ["--all"] * everything + ["--no-follow-children"] * (not follow) + ["--no-detect"] * (not detect)
        options += [f"--config={config}"] * (config is not None) + [f"--store={store or 'none'}"]
        raise typer.Exit(watch_capture(options, watch.draw_capture))
    if events == "-":
        watch.watch_input()
    else:
        watch.watch_store(store or "")
