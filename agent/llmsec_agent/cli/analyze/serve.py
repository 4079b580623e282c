"""`llmsec-analyze serve`: a web console over a store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmsec_agent.cli.analyze.query import ShownStoreOption
from llmsec_agent.cli.analyze.scan import ConfigOption
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import DEFAULT_STORE, create_store


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
        str | None, typer.Option("--trusted-header", metavar="NAME", help="A header in which a proxy names the user.")
    ] = None,
    trusted_role_header: Annotated[
        str | None, typer.Option("--trusted-role-header", metavar="NAME", help="A header in which it names the role. Without it: viewer.")
    ] = None,
    trusted_proxy: Annotated[
        str | None, typer.Option("--trusted-proxy", metavar="ADDRESS", help="The proxy whose headers are believed.")
    ] = None,
    trusted_secret: Annotated[
        str | None,
        typer.Option(
            "--trusted-secret", metavar="FILE", help="What the proxy sends as X-LLMSec-Proxy-Secret; needed where it is on this host."
        ),
    ] = None,
    public_name: Annotated[
        str | None, typer.Option("--public-name", metavar="HOST", help="The name by which people reach it, through a proxy for example.")
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            "--audit",
            metavar="FOLDER",
            help="Whose audit log has logins, looks at content and decisions; made if need be. Default: a folder's own, none for a database.",
        ),
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
    the store's audit log, for a database in that of --audit.

    Example: llmsec-analyze serve --store llmsec-data
    """
    from llmsec_agent.console.access import ROLES, hashed, is_user_name

    if add_user is not None:
        name, _, role = add_user.partition(":")
        if role not in ROLES:
            raise ConfigError(f"--add-user: expected name:role, not {add_user!r}", f"roles are {', '.join(ROLES)}")
        if not is_user_name(name):
            raise ConfigError(
                f"--add-user: {name!r} is no name for a line of a file", "no # at its beginning, no space around it, 128 at most"
            )
        password = sys.stdin.readline().rstrip("\r\n")
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
    from llmsec_agent.console.serving import ServeSettings, access_of, address_of, cookie_of, listen, tls_of
    from llmsec_agent.console.triage import triage_of
    from llmsec_agent.journals import journal
    from llmsec_agent.store_rights import drop_rights
    from llmsec_agent.text import report
    from llmsec_analyzer.stored.stores import open_session

    settings = ServeSettings(
        store, host, port, tls_cert, tls_key, token_file, users, trusted_header, trusted_role_header, trusted_proxy, trusted_secret, public_name
    )  # fmt: skip
    log = journal()
    triage = triage_of(suppressions, load_config(config, report).security.suppressions)
    access, made = access_of(settings)
    context = tls_of(settings)
    listener = listen(settings)
    drop_rights(store)  # before anything starts a thread, which would keep them
    with open_session(store, log):  # what is wrong with it is said now
        pass
    shown = store if "://" not in store else store.split("@")[-1]
    bound = listener.getsockname()[1]
    kept = create_store(audit, log) if audit is not None else None
    app = console(store, shown, access, log, is_secure=context is not None, triage=triage, log=kept, cookie=cookie_of(settings, bound))
    pages = app.state.pages
    if pages.log is None:
        pages.journal.warning("not_audited", "who looks at content is not in an audit log of ours: --audit FOLDER keeps one")
    typer.echo(f"console of {shown}: {address_of(settings, bound)}{'login?token=' + made if made else ''}", err=True)
    typer.echo("Ctrl-C stops it.", err=True)
    try:
        Server(app, context).serve_on(listener)
    finally:
        pages.asking.close()
