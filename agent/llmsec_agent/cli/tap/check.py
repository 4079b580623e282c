"""`llmsec-tap check`: whether live capture can work here."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(check)


def check() -> None:
    """Tell what live capture needs of this host, what is missing, and the one thing to do about it.

    One line each: ok, warn (works, with a limit) or FAIL with the remedy. Nothing on the host is changed: the last step loads the
    eBPF programs and places one probe in this command itself. Exit: 0 where capture can work, 3 where it cannot.

    Example: llmsec-tap check
    """
    from llmsec_tap.capture.prerequisites import check_host
    from llmsec_tap.visible import visible

    findings = check_host()
    for finding in findings:
        verdict = finding.verdict.upper() if finding.verdict == "fail" else finding.verdict
        advice = f" -> {finding.advice}" if finding.advice else ""
        typer.echo(visible(f"{verdict:<5} {finding.name:<13} {finding.detail}{advice}"))
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(3)
