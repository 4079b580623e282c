"""`llmsec-analyze scan`: texts in, findings out."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from llmsec_tap.errors import ConfigError

if TYPE_CHECKING:
    from llmsec_analyzer.settings import DetectionSettings


class ScanFormat(StrEnum):
    TABLE = "table"
    JSONL = "jsonl"


class SeverityChoice(StrEnum):
    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class CategoryChoice(StrEnum):
    """llmsec_tap.model.Category. A test compares."""

    PROMPT_INJECTION = "prompt_injection"
    JAILBREAK = "jailbreak"
    SYSTEM_PROMPT_LEAK = "system_prompt_leak"
    PII = "pii"
    SECRET = "secret"  # noqa: S105 - the name of a category
    DATA_EXFILTRATION = "data_exfiltration"
    UNSAFE_OUTPUT = "unsafe_output"
    ANOMALY = "anomaly"


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        envvar="LLMSEC_CONFIG",
        metavar="FILE",
        help="Configuration (YAML, JSON or TOML); its `security` part counts here. Default: /etc/llmsec-trace/config.yaml, if it exists.",
    ),
]
SuppressionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--suppressions", metavar="FILE", help="Findings that count no longer, beside those of the configuration; may be repeated."
    ),
]
FailOnOption = Annotated[SeverityChoice | None, typer.Option("--fail-on", help="Exit with 1 if a finding is at least this severe.")]


def need_detection(security: DetectionSettings, asked: str) -> None:
    """A gate that looks at nothing must not pass. Raises ConfigError where detection is switched off."""
    if not security.enabled:
        raise ConfigError(f"{asked} needs detection, and security.enabled is false", f"set security.enabled: true, or leave out {asked}")


def register(app: typer.Typer) -> None:
    app.command()(scan)


def scan(
    file: Annotated[
        str, typer.Argument(help="Texts: JSON lines with `text`, or plain lines; - is standard input.", metavar="[FILE|-]")
    ] = "-",
    output: Annotated[ScanFormat | None, typer.Option("--format", help="Default: table on a terminal, else jsonl.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Take the input as one text.")] = False,
    model: Annotated[bool, typer.Option("--model/--no-model", help="Judge prompt injection with the model.")] = True,
    fail_on: FailOnOption = None,
    suppressions: SuppressionsOption = None,
    config: ConfigOption = None,
) -> None:
    """Find secrets, personal data, prompt injection and unsafe output in texts.

    In: JSON lines {"id": …, "text": …, "role": "user"|"assistant"|"tool"|"system"}, or plain text, a text a line. Out: one line a
    text, in order. Nothing is sent anywhere.

    Example: echo 'my card is 4111 1111 1111 1111' | llmsec-analyze scan --format jsonl
    """
    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal as new_journal
    from llmsec_agent.suppressing import suppressions_of, with_suppressions
    from llmsec_agent.text import report
    from llmsec_analyzer.judge import texts as scanning
    from llmsec_analyzer.judge.scanner import Scanner
    from llmsec_analyzer.show.finding_rows import scan_rows
    from llmsec_analyzer.show.terminal import json_visible
    from llmsec_tap.errors import where
    from llmsec_tap.identity.credentials import fingerprinter
    from llmsec_tap.install_key import install_key

    settings = with_suppressions(load_config(config, report).security, suppressions)
    if fail_on is not None:
        need_detection(settings, "--fail-on")
    if not model:
        injection = msgspec.structs.replace(
            settings.prompt_injection, model=msgspec.structs.replace(settings.prompt_injection.model, enabled=False)
        )
        settings = msgspec.structs.replace(settings, prompt_injection=injection)
    journal = new_journal()

    def failed_detector(name: str, fault: Exception) -> None:
        journal.warning("detector_failed", f"the detector {name} failed ({type(fault).__name__} at {where(fault)}); the others go on")

    scanner = Scanner(settings, fingerprinter(install_key(journal)), on_fault=failed_detector)
    suppressed = suppressions_of(settings, journal)
    on_terminal = sys.stdout.isatty()
    as_table = output is ScanFormat.TABLE or (output is None and on_terminal)
    failed = broken = False
    with results():
        for result in scanning.results(scanner, scanning.inputs(file, whole=whole), suppressed):
            if as_table:
                for row in scan_rows(result):
                    print(row)  # noqa: T201 - the result
            else:
                line = scanning.line_of(result)
                sys.stdout.buffer.write((json_visible(line.decode()).encode() if on_terminal else line) + b"\n")
                if file == "-":
                    sys.stdout.buffer.flush()  # the caller may be waiting for the result of each line
            failed = failed or (fail_on is not None and scanning.reaches(result.findings, fail_on.value))
            broken = broken or isinstance(result.error, str)
    if broken:
        raise typer.Exit(3)
    if failed:
        raise typer.Exit(1)
