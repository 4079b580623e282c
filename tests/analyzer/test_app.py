from __future__ import annotations

import subprocess
import sys

import pytest
import typer.main

from llmsec_agent.cli.analyze.app import app
from llmsec_tap import __version__


def commands(command, words=()):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) or "root" for words, _ in COMMANDS])
def test_every_command_and_option_has_help(words, command):
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{' '.join(words)} {parameter.name}"


def test_version(run):
    assert run("--version").stdout == f"llmsec-analyze {__version__}\n"


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from llmsec_agent.cli.analyze import app\n"
        "print([name for name in ('duckdb', 'polars', 'pyarrow', 'rich', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env())
    assert done.stdout == "[]\n"


def env():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_no_command_shows_help(run):
    done = run()
    assert "Usage" in done.stdout + done.stderr
