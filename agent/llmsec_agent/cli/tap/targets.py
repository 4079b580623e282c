"""`llmsec-tap targets`: what on this host can be observed."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(targets)


def targets(
    pid: Annotated[list[int] | None, typer.Option("--pid", min=1, help="Only this process; may be repeated.", metavar="PID")] = None,
    fast_probes: Annotated[bool, typer.Option("--fast-probes/--no-fast-probes", help="As for capture.")] = True,
) -> None:
    """List the processes with a TLS library or a model server: what can be probed, what cannot, and why.

    Example: llmsec-tap targets
    """
    from llmsec_tap.capture.host import proc
    from llmsec_tap.capture.probes.inventory import inventory
    from llmsec_tap.capture.probes.targets import TargetFinder
    from llmsec_tap.errors import SourceError
    from llmsec_tap.visible import visible

    for chosen in pid or ():
        if not proc.is_alive(chosen):
            raise SourceError(f"there is no process {chosen}", "`llmsec-tap targets` lists those that can be observed.")
    lines = [line for line in inventory(TargetFinder(fast=fast_probes)) if not pid or line.pid in pid]
    typer.echo(f"{'pid':>7}  {'process':<15}  {'container':<12}  {'what':<18}  {'how':<7}  detail")
    for line in lines:
        container = (line.container or "")[:12]
        typer.echo(visible(f"{line.pid:>7}  {line.comm:<15}  {container:<12}  {line.what:<18}  {line.verdict:<7}  {line.detail}"))
    if not lines:
        typer.echo("no process with a TLS library that may be looked at (others' processes need root or CAP_SYS_PTRACE)", err=True)
