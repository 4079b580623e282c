"""`llmsec-analyze replay`: capture files in, exchanges out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from llmsec_agent.cli.analyze.scan import ConfigOption, FailOnOption, SuppressionsOption, need_detection
from llmsec_agent.cli.formats import RunFormat
from llmsec_tap.errors import ConfigError, SourceError
from llmsec_tap.storage import DEFAULT_STORE

_CAPTURES: Final = (".pcap", ".pcapng", ".cap")


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    files: Annotated[
        list[str],
        typer.Argument(
            help="pcap or pcapng, plain or gzip, or a folder of them; - is standard input.", metavar="FILE…", show_default=False
        ),
    ],
    port: Annotated[
        list[int] | None, typer.Option("--port", min=1, max=65535, help="Read only this TCP port; may be repeated. Default: any.")
    ] = None,
    keylog: Annotated[
        str | None,
        typer.Option(
            "--keylog",
            envvar="LLMSEC_KEYLOG",
            metavar="FILE",
            help="Secrets of TLS connections, as SSLKEYLOGFILE has clients and servers log them. What a pcapng file holds itself is used, too.",
        ),
    ] = None,
    store: Annotated[
        str, typer.Option("--store", envvar="LLMSEC_STORE", metavar="FOLDER", help="Where exchanges are kept; `none` keeps nothing.")
    ] = DEFAULT_STORE,
    output: Annotated[
        RunFormat, typer.Option("--format", help="What is printed for each exchange; events: also of those that have not ended.")
    ] = RunFormat.TABLE,
    content: Annotated[bool, typer.Option("--content/--no-content", help="Keep texts; without, only counts, names and times.")] = True,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json that counts tokens where the server states none.")
    ] = None,
    detect: Annotated[
        bool, typer.Option("--detect/--no-detect", help="Look for secrets, personal data, prompt injection and unsafe output.")
    ] = True,
    fail_on: FailOnOption = None,
    redact: Annotated[bool, typer.Option("--redact", help="Mask secrets and personal data in what is printed and stored.")] = False,
    suppressions: SuppressionsOption = None,
    alert: Annotated[
        bool,
        typer.Option(
            "--alert",
            help="Leave alerts of the configuration's rules for `llmsec-tap deliver --alerts` to send; without, they are decided and stored only.",
        ),
    ] = False,
    config: ConfigOption = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, max=64, help="Processes that decode, each its connections; the result is the same. --memory-cap is shared out."
        ),
    ] = 1,
    memory_cap: Annotated[
        int, typer.Option("--memory-cap", min=128, help="Resident memory at most, in MiB; the detection process is apart.")
    ] = 512,
) -> None:
    """Rebuild the exchanges with language models that captures hold, print them and store them.

    HTTP is recognised by content on any TCP port, also inside TLS whose secrets are known (--keylog); a connection that stays closed is one line. Results go to standard output; progress and the closing summary to standard
    error. A capture that is cut or damaged is read as far as it goes, and the command then exits with 3.

    Example: llmsec-analyze replay capture.pcap --format jsonl
    """
    import shlex

    from llmsec_agent.alerts_lane import alert_settings, plan_alerts
    from llmsec_agent.config import load_all, whose_of
    from llmsec_agent.config.retention import audited_severity
    from llmsec_agent.journals import journal
    from llmsec_agent.output import printer
    from llmsec_agent.replay import ReplaySettings
    from llmsec_agent.replay import replay as run
    from llmsec_agent.shares import Shares, decoders
    from llmsec_agent.start_detection import detection_starter
    from llmsec_agent.suppressing import with_suppressions
    from llmsec_agent.tenants.policy import Policies, file_policies
    from llmsec_agent.tenants.resolver import directory_of
    from llmsec_agent.text import report
    from llmsec_agent.watching import plan_watch
    from llmsec_tap.capture.files.key_log import read_key_log

    if not detect and (redact or fail_on):
        raise ConfigError("--redact and --fail-on need detection", "leave out --no-detect")
    if alert and store == "none":
        raise ConfigError("--alert leaves alerts in the store's folder", "leave out --store none")
    log = journal()
    loaded = load_all(config, report)
    if fail_on or redact:
        need_detection(loaded.config.security, "--fail-on" if fail_on else "--redact")
    names = captures(files)
    watches_keys = loaded.sets("tenants") and loaded.config.tenants.watch_keys
    if jobs > 1:
        if "-" in names or output is RunFormat.EVENTS:
            raise ConfigError("--jobs reads files and prints whole exchanges", "leave it out for standard input and for --format events")
        if watches_keys:
            raise ConfigError("tenants.watch_keys looks at all connections together", "set it to false, or leave out --jobs")
        decoders(jobs, memory_cap << 20, jobs)
    keys = read_key_log(keylog) if keylog else None
    told = plan_alerts(alert_settings(loaded.config))
    directory = directory_of(loaded.config.storage, log, seats=jobs)
    policies = Policies(file_policies(loaded.config), directory)
    send = ["llmsec-tap", "deliver", "--alerts", "--store", store, *(["--config", str(loaded.file)] if loaded.file else []), "--once"]
    settings = ReplaySettings(
        files=names,
        ports=frozenset(port) if port else None,
        keys=keys,
        store=None if store == "none" else store,
        content=content,
        tokenizer=tokenizer,
        memory_cap_bytes=memory_cap << 20,
        whose=whose_of(loaded),
        watch_keys=watches_keys,
        directory=directory,
        policies=policies,
        audit=audited_severity(loaded.config),
        watch=plan_watch(loaded.config),
        alerts=told if told.rules else None,
        send_by=shlex.join(send) if alert else None,
    )
    security = with_suppressions(loaded.config.security, suppressions)
    detection = detection_starter(
        security,
        log,
        may_wait=True,
        queue_bytes=Shares.of(settings.memory_cap_bytes // jobs).detection,
        is_built_in=not loaded.sets("security") and not suppressions,
        redact=redact,
        early_from="info" if output is RunFormat.EVENTS else "high",
        fail_on=fail_on.value if fail_on else None,
        handling=policies.handling,
    )
    starts = detection if detect and security.enabled else None
    if jobs > 1:
        from llmsec_agent.parallel import replay_in_parallel

        raise typer.Exit(replay_in_parallel(settings, log, jobs, print_to=printer(output.value), start_detection=starts))
    raise typer.Exit(run(settings, log, print_to=printer(output.value), start_detection=starts))


def captures(names: list[str]) -> tuple[str, ...]:
    """The files, with the captures of a folder in the order of their names in its place. Raises SourceError for a folder without one."""
    files: list[str] = []
    for name in names:
        folder = Path(name)
        if name == "-" or not folder.is_dir():
            files.append(name)
            continue
        found = sorted(str(path) for path in folder.iterdir() if path.name.removesuffix(".gz").endswith(_CAPTURES) and path.is_file())
        if not found:
            raise SourceError(f"{name}: no captures in this folder", f"their names end in {', '.join(_CAPTURES)}, perhaps with .gz")
        files += found
    return tuple(files)
