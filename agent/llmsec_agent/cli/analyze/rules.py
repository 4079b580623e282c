"""`llmsec-analyze rules`: list what is looked for, prove that rules do what they say, see what a change does, import others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsec_agent.cli.analyze.query import FolderOption
from llmsec_agent.cli.analyze.scan import CategoryChoice, ConfigOption, SeverityChoice, SuppressionsOption, need_detection
from llmsec_tap.storage import DEFAULT_STORE

if TYPE_CHECKING:
    from llmsec_agent.import_rules import Imported


class RulesFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


class Kind(StrEnum):
    GITLEAKS = "gitleaks"
    REGEX = "regex"


group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


def register(app: typer.Typer) -> None:
    app.add_typer(
        group, name="rules", help="List detection rules, prove that they do what they say, see what a change would do, import others."
    )


@group.command("list")
def list_rules(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files or folders of your own rules, or package:NAME; none: those that ship.", metavar="[PATH…]"),
    ] = None,
    category: Annotated[CategoryChoice | None, typer.Option(help="Of this category.")] = None,
    output: Annotated[RulesFormat, typer.Option("--format", help="json: one rule per line.")] = RulesFormat.TABLE,
) -> None:
    """List rules: id, severity, category, and what each finds.

    Example: llmsec-analyze rules list --category secret
    """
    import msgspec

    from llmsec_agent.cli.analyze.streams import results
    from llmsec_analyzer.prove.form import check_form
    from llmsec_analyzer.rules.load import load_builtin, load_paths
    from llmsec_analyzer.show.terminal import cut, json_visible, pad, visible

    rules = load_paths(paths, check_form) if paths else load_builtin()
    with results():
        for rule in rules:
            if category is not None and rule.category != category.value:
                continue
            if output is RulesFormat.JSON:
                line = msgspec.json.encode(rule)
                sys.stdout.buffer.write((json_visible(line.decode()).encode() if sys.stdout.isatty() else line) + b"\n")
            else:
                print(f"{pad(cut(rule.id, 34), 34)}  {pad(rule.severity, 8)}  {pad(rule.category, 18)}  {cut(visible(rule.name), 60)}")  # noqa: T201 - the result


@group.command("check")
def check(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files or folders of rules, or package:NAME; none: those that ship.", metavar="[PATH…]")
    ] = None,
) -> None:
    """Prove rules: that they are well formed, their ids unique, and every example found or not found as it says.

    Exits with 2 if anything is wrong, and names file, line and what may be meant.

    Example: llmsec-analyze rules check my-rules/
    """
    from llmsec_analyzer.prove.examples import check_rules
    from llmsec_analyzer.prove.form import check_form
    from llmsec_analyzer.rules.load import load_builtin, load_paths
    from llmsec_analyzer.show.terminal import visible
    from llmsec_tap.errors import ConfigError

    builtin = load_builtin()
    rules = load_paths(paths, check_form) if paths else builtin
    if not rules:  # what proves nothing must not pass
        raise ConfigError(f"{', '.join(paths or ())}: no rules", "name a file of rules, or the folder in which its .yaml files stand")
    trusted = frozenset(rule.id for rule in builtin) if not paths else frozenset()
    wrong = check_rules(rules, trusted=trusted)
    if paths:
        taken = {rule.id for rule in builtin}
        wrong += [f"rule {rule.id}: a shipped rule already uses this id" for rule in rules if rule.id in taken]
    for line in wrong:
        typer.echo(visible(f"error: {line}"), err=True)
    examples = sum(len(rule.examples.match) + len(rule.examples.no_match) for rule in rules)
    typer.echo(f"{len(rules)} rules, {examples} examples, {len(wrong)} problems")
    if wrong:
        raise typer.Exit(2)


@group.command("test")
def try_rules(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files or folders of rules, or package:NAME: new ones, and others in place of those with their id.", metavar="[PATH…]"
        ),
    ] = None,
    store: FolderOption = DEFAULT_STORE,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="ID", help="As if this rule were left out; may be repeated.")
    ] = None,
    output: Annotated[RulesFormat, typer.Option("--format", help="json: one object.")] = RulesFormat.TABLE,
    fail_on: Annotated[
        SeverityChoice | None, typer.Option("--fail-on", help="Exit with 1 if a finding that is added is at least this severe.")
    ] = None,
    suppressions: SuppressionsOption = None,
    config: ConfigOption = None,
) -> None:
    """Look at all stored texts with the rules of the configuration, and with a change of them: what it adds, removes and changes.

    Nothing is stored. Examples are previews, redacted as findings are.

    Example: llmsec-analyze rules test my-rules/ --store llmsec-data
    """
    import msgspec

    from llmsec_agent.auditing import record_reading
    from llmsec_agent.cli.analyze.streams import results
    from llmsec_agent.compare_rules import compare, totals
    from llmsec_agent.config import load_config
    from llmsec_agent.journals import journal
    from llmsec_agent.suppressing import suppressions_of, with_suppressions
    from llmsec_agent.text import report
    from llmsec_analyzer.risk import rank
    from llmsec_analyzer.show.results import write_lines
    from llmsec_analyzer.show.terminal import cut, pad, visible
    from llmsec_analyzer.stored.session import QuerySession
    from llmsec_tap.errors import ConfigError
    from llmsec_tap.identity.credentials import fingerprinter
    from llmsec_tap.install_key import install_key

    if not paths and not without:
        raise ConfigError("no change is given", "name files of rules, or --without ID")
    log = journal()
    security = with_suppressions(load_config(config, report).security, suppressions)
    if fail_on is not None:
        need_detection(security, "--fail-on")
    with QuerySession.open(store, log) as session:
        made = compare(session, security, paths or (), without or (), fingerprinter(install_key(log)), suppressions_of(security, log))
        record_reading(session, log, "query", command="rules test", format=output.value)
    counts = totals(made)
    with results():
        if output is RulesFormat.JSON:
            write_lines([msgspec.json.encode(made).decode()], sys.stdout)
        else:
            print(f"{pad('rule', 40)}  {'added':>8}  {'removed':>8}  {'changed':>8}  {'same':>8}")  # noqa: T201 - the result
            for entry in made.rules:
                numbers = f"{entry.added:>8,}  {entry.removed:>8,}  {entry.changed:>8,}  {entry.same:>8,}"
                print(f"{pad(cut(visible(entry.rule), 40), 40)}  {numbers}")  # noqa: T201 - the result
                for example in entry.examples:
                    place = f"{example.exchange_id[:12]} {example.part} {example.start}-{example.end}"
                    print(f"  {pad(example.kind, 7)}  {pad(example.severity, 8)}  {visible(place)}  {cut(visible(example.preview), 72)}")  # noqa: T201 - the result
    beside = f", {made.without_texts:,} were stored without texts" if made.without_texts else ""
    log.info(
        "compared",
        f"looked at {made.exchanges:,} exchanges{beside}: added {counts['added']:,}, removed {counts['removed']:,},"
        f" changed {counts['changed']:,}, same {counts['same']:,}",
        exchanges=made.exchanges,
        **counts,
    )
    if fail_on is not None and made.worst is not None and rank(made.worst) >= rank(fail_on.value):
        raise typer.Exit(1)


@group.command("import")
def import_rules(
    kind: Annotated[Kind, typer.Argument(help="gitleaks: its TOML. regex: names and regular expressions, JSON or YAML.")],
    file: Annotated[Path, typer.Argument(help="What is imported.", metavar="FILE")],
    out: Annotated[Path, typer.Argument(help="The file of rules that is written; it must not be there.", metavar="OUT.yaml")],
    prefix: Annotated[str | None, typer.Option("--prefix", help="What ids begin with. Default: gitleaks, or imported.")] = None,
    severity: Annotated[
        SeverityChoice | None, typer.Option("--severity", help="Severity of all of them. Default: high of gitleaks, else medium.")
    ] = None,
) -> None:
    """Make rules of those of another scanner, as far as they can be told; what cannot be told is named, a line each.

    Nothing is fetched: FILE is yours. The rules count once the configuration names OUT.yaml (security.rules).

    Example: llmsec-analyze rules import gitleaks gitleaks.toml my-rules/gitleaks.yaml
    """
    from llmsec_agent.import_rules import from_gitleaks, from_regexes, write_rules
    from llmsec_agent.text import report
    from llmsec_tap.errors import ConfigError

    read: Callable[..., Imported] = from_gitleaks if kind is Kind.GITLEAKS else from_regexes
    given = {"prefix": prefix, "severity": severity.value if severity is not None else None}
    made = read(file, **{name: value for name, value in given.items() if value is not None})
    for note in made.notes:
        report(f"note: {note}")
    if not made.rules:
        raise ConfigError(f"{file}: none of its rules can be one of ours", "the notes say why")
    write_rules(out, made.rules, f"{file.name} ({kind.value})")
    report(f"{len(made.rules):,} rules written to {out}, {len(made.notes):,} notes")
