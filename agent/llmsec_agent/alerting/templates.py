"""The user's own text of an alert: a Jinja template in its sandbox. One that fails is said once, and ours goes out in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmsec_agent.alerting.message import Message, escaped
from llmsec_tap.journal import Journal
from llmsec_tap.visible import visible

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import SandboxedEnvironment

_MOST_CHARS: Final = 16_000


class TemplateFaultError(Exception):
    """One line: where and what."""


def compile_template(text: str, *, html: bool = False) -> Template:
    """Raises TemplateFaultError."""
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment: SandboxedEnvironment = ImmutableSandboxedEnvironment(autoescape=html, undefined=StrictUndefined)
    environment.globals.clear()  # `range` and the like would let a loop take as long as it likes
    try:
        return environment.from_string(text)
    except TemplateError as fault:
        line = getattr(fault, "lineno", None)
        raise TemplateFaultError(f"line {line}: {fault.message}" if line is not None else str(fault.message)) from None
    except (RecursionError, MemoryError) as fault:
        raise TemplateFaultError(type(fault).__name__) from None


class Text:
    """A channel's text: the user's template, or ours where there is none or it fails."""

    def __init__(self, source: str | None, name: str, journal: Journal, *, html: bool = False) -> None:
        self._name = name
        self._journal = journal
        self._template: Template | None = None
        self._said = ""
        if source is not None:
            try:
                self._template = compile_template(source, html=html)
            except TemplateFaultError as fault:
                self.refuse(str(fault))

    def of(self, message: Message, escape: Callable[[str], str] = str) -> str | None:
        """None: take ours. `escape`: for where the text goes."""
        if self._template is None:
            return None
        given = {"alert": msgspec.to_builtins(message.alert), "title": message.title, "facts": message.facts, "text": message.text}
        try:
            return render(self._template, escaped(given, escape))
        except TemplateFaultError as fault:
            self.refuse(str(fault))
            return None

    def refuse(self, fault: str) -> None:
        """Say once that it does not serve."""
        if fault != self._said:
            self._said = fault
            text = f"alerting.channels.{self._name}.template: {visible(fault)}; the text is ours"
            self._journal.warning("alert_template_refused", text, channel=self._name)


def render(template: Template, given: dict[str, Any]) -> str:
    """Raises TemplateFaultError."""
    try:
        made = _bounded(template.generate(given))
    except TemplateFaultError:
        raise
    except Exception as fault:  # noqa: BLE001 - whatever an expression of the user's does
        raise TemplateFaultError(f"{type(fault).__name__}: {str(fault)[:200]}") from None
    if not made.strip():
        raise TemplateFaultError("it says nothing")
    return made


def _bounded(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    length = 0
    for piece in pieces:
        kept.append(piece)
        length += len(piece)
        if length > _MOST_CHARS:
            raise TemplateFaultError(f"more than {_MOST_CHARS:,} characters")
    return "".join(kept)
