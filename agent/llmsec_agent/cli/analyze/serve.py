"""`llmsec-analyze serve`: a web console over a store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import ShownStoreOption
from llmsec_agent.cli.analyze.scan import ConfigOption
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import DEFAULT_STORE


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    store: ShownStoreOption = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="Where to listen. Elsewhere than on this host it needs TLS and a login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Its key, PEM.")] = None,
    token_file: Annotated[
        str | None,
        typer.Option("--token-file", metavar="FILE", help="A token to log in with, as admin. Without any login one is made and printed."),
    ] = None,
    users: Annotated[
        str | None, typer.Option("--users", metavar="FILE", help="Lines name:role:hash; roles are viewer, analyst, admin.")
    ] = None,
    trusted_header: Annotated[
        str | None, typer.Option("--trusted-header", metavar="NAME", help="A header in which a proxy names the user, as name or name:role.")
    ] = None,
    trusted_proxy: Annotated[
        str | None, typer.Option("--trusted-proxy", metavar="ADDRESS", help="The proxy whose header is believed.")
    ] = None,
    suppressions: Annotated[
        str | None,
        typer.Option(
            "--suppressions", metavar="FILE", help="Where admins' suppressions go. Default: the configuration's, if it names one."
        ),
    ] = None,
    config: ConfigOption = None,
    add_user: Annotated[
        str | None,
        typer.Option("--add-user", metavar="NAME:ROLE", help="Print a line for --users, with the password of standard input, and end."),
    ] = None,
) -> None:
    """Show a store in a browser: overview, exchanges, conversations with their findings, taps.

    It listens on this host alone unless told otherwise, and whoever opens it logs in. Viewers see no content; each look of others at content is in
    the store's audit log.

    Example: llmsec-analyze serve --store llmsec-data
    """
    from llmsec_agent.console.access import ROLES, hashed

    if add_user is not None:
        name, _, role = add_user.partition(":")
        if not name or role not in ROLES:
            raise ConfigError(f"--add-user: expected name:role, not {add_user!r}", f"roles are {', '.join(ROLES)}")
        password = sys.stdin.readline().rstrip("\n")
        if len(password) < 8:
            raise ConfigError("a password has 8 characters at least", "it is read from standard input")
        typer.echo(f"{name}:{role}:{hashed(password)}")
        return
    try:
        from llmsec_agent.console.app import console
        from llmsec_agent.console.connections import Server
    except ImportError as fault:
        raise ConfigError(f"the console needs the package {fault.name}", "pip install 'llmsec-trace[console]'") from None
    from llmsec_agent.config import load_config
    from llmsec_agent.console.serving import ServeSettings, access_of, listen, tls_of
    from llmsec_agent.console.triage import triage_of
    from llmsec_agent.journals import journal
    from llmsec_agent.store_rights import drop_rights
    from llmsec_agent.text import report
    from llmsec_analyzer.stored.stores import open_session

    settings = ServeSettings(store, host, port, tls_cert, tls_key, token_file, users, trusted_header, trusted_proxy)
    log = journal()
    triage = triage_of(suppressions, load_config(config, report).security.suppressions)
    access, made = access_of(settings)
    context = tls_of(settings)
    listener = listen(settings)
    drop_rights(store)  # before anything starts a thread, which would keep them
    with open_session(store, log):  # what is wrong with it is said now
        pass
    shown = store if "://" not in store else store.split("@")[-1]
    app = console(store, shown, access, log, is_secure=tls_cert is not None, triage=triage)
    address = f"{'https' if tls_cert else 'http'}://{'[' + host + ']' if ':' in host else host}:{listener.getsockname()[1]}/"
    typer.echo(f"console of {shown}: {address}{'login?token=' + made if made else ''}", err=True)
    typer.echo("Ctrl-C stops it.", err=True)
    try:
        Server(app, context).serve_on(listener)
    finally:
        app.state.pages.asking.close()
