"""`llmsec-analyze rules`: list what is looked for, prove that rules do what they say."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer


class RulesFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="rules", help="List detection rules, and prove that they do what they say.")


@group.command("list")
def list_rules(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files or folders of your own rules; none: those that ship.", metavar="[PATH…]")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Only this category: secret, pii, prompt_injection, …")] = None,
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
            if category is not None and rule.category != category:
                continue
            if output is RulesFormat.JSON:
                line = msgspec.json.encode(rule)
                sys.stdout.buffer.write((json_visible(line.decode()).encode() if sys.stdout.isatty() else line) + b"\n")
            else:
                print(f"{pad(cut(rule.id, 34), 34)}  {pad(rule.severity, 8)}  {pad(rule.category, 18)}  {cut(visible(rule.name), 60)}")  # noqa: T201 - the result


@group.command("check")
def check(
    paths: Annotated[list[str] | None, typer.Argument(help="Files or folders of rules; none: those that ship.", metavar="[PATH…]")] = None,
) -> None:
    """Prove rules: that they are well formed, their ids unique, and every example found or not found as it says.

    Exits with 2 if anything is wrong, and names file, line and what may be meant.

    Example: llmsec-analyze rules check my-rules/
    """
    from llmsec_analyzer.prove.examples import check_rules
    from llmsec_analyzer.prove.form import check_form
    from llmsec_analyzer.rules.load import load_builtin, load_paths
    from llmsec_analyzer.show.terminal import visible

    builtin = load_builtin()
    rules = load_paths(paths, check_form) if paths else builtin
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
