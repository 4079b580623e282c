"""The live view's screen: two tables, the latest, and keys. All text is made harmless before it comes here, and once more where it is drawn, as text, never
as markup.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static

from llmsec_agent.top.board import SORTS, Board, Line, sorted_rates
from llmsec_agent.top.sources import Said, Source, Stored
from llmsec_agent.top.texts import COLUMNS, figures, moment, short, totals, what
from llmsec_agent.top.windows import Rates
from llmsec_tap.errors import LLMSecError
from llmsec_tap.visible import visible

_EVERY_S: Final = 0.25
# Taking events in has this much of each interval: keys stay quick.
_TAKING_S: Final = 0.12
# A drawing is followed by none for so many times what it took: a busy host is not made busier.
_DRAWING_SHARE: Final = 8
_MAX_ROWS: Final = 200
# A screen lays out no megabytes; the commands print all of a record.
_MAX_TEXT: Final = 100_000
_GRAVE: Final = frozenset(("high", "critical", "p1", "page"))
HELP: Final = """\
Rates are of the last minute. first, p95: time to the first token, median and 95th percentile. risk: the highest.
~ marks token counts that were estimated.

  Tab, Shift-Tab   to the next table, to the one before
  arrows, PgUp/Dn  move
  Enter            a process or model: show only that; one of the latest: the whole record
  /                show only what has a text in its process, model, tenant or rule; Enter, or Esc for all again
  s                sort by another figure
  p, space         pause what is drawn; nothing is lost meanwhile
  ?                this
  q, Ctrl-C        leave
"""


class Pane(DataTable[Text]):
    """A table whose rows keep their places: the cursor stays with its row's key, and cells that stay are not drawn again."""

    def __init__(self, titles: Sequence[tuple[str, int]], name: str) -> None:
        super().__init__(id=name, cursor_type="row", cell_padding=0, show_cursor=True)
        self.titles = titles
        self.shown: list[tuple[str, tuple[Text, ...]]] = []

    def lay_out(self, widths: Sequence[int]) -> None:
        self.clear(columns=True)
        shown, self.shown = self.shown, []
        for (title, _), width in zip(self.titles, widths, strict=True):
            self.add_column(Text(title), width=width)
        self.fill(shown)

    def fill(self, rows: list[tuple[str, tuple[Text, ...]]]) -> None:
        held = self.key_at_cursor()
        for number, (_, cells) in enumerate(rows):
            if number >= len(self.shown):
                self.add_row(*cells)
            else:
                for column, (old, new) in enumerate(zip(self.shown[number][1], cells, strict=True)):
                    if old != new or old.style != new.style:
                        self.update_cell_at((number, column), new)  # type: ignore[arg-type]
        for _ in range(len(self.shown) - len(rows)):
            self.remove_row(self.ordered_rows[-1].key)
        self.shown = rows
        if held is not None and self.cursor_row:
            place = next((number for number, (key, _) in enumerate(rows) if key == held), None)
            if place is not None and place != self.cursor_row:
                self.move_cursor(row=place)

    def key_at_cursor(self) -> str | None:
        return self.shown[self.cursor_row][0] if 0 <= self.cursor_row < len(self.shown) else None


class Reading(ModalScreen[None]):
    """One text, to scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "back"),
        Binding("j", "down"),
        Binding("k", "up"),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = visible(title), text

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._title}   Esc: back", no_wrap=True, overflow="ellipsis"), classes="bar", markup=False)
        with VerticalScroll():
            yield Static(_page(self._text), id="text", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def say(self, text: str) -> None:
        self.query_one("#text", Static).update(_page(text))

    def action_down(self) -> None:
        self.query_one(VerticalScroll).scroll_down()

    def action_up(self) -> None:
        self.query_one(VerticalScroll).scroll_up()


class Top(App[None]):
    ENABLE_COMMAND_PALETTE = False
    TITLE = "llmsec-tap top"
    CSS = """
    Screen { layout: vertical; }
    Static.bar { height: 1; width: 100%; text-style: reverse; }
    Static.line { height: 1; width: 100%; }
    #text { width: 100%; height: auto; }
    #processes, #models { height: 2fr; min-height: 3; }
    #latest { height: 3fr; min-height: 3; }
    DataTable { scrollbar-size: 1 1; overflow-x: hidden; }
    DataTable > .datatable--cursor { text-style: none; }
    DataTable:focus > .datatable--cursor { text-style: reverse; }
    DataTable > .datatable--header { text-style: underline; }
    Input { height: 1; border: none; padding: 0; display: none; }
    Input.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit"),
        Binding("ctrl+c", "quit", priority=True),
        Binding("p,space", "pause"),
        Binding("slash", "ask"),
        Binding("s", "sort"),
        Binding("escape", "everything"),
        Binding("question_mark,h,f1", "help"),
    ]

    def __init__(self, source: Source, board: Board, *, leaves_at_end: bool = False) -> None:
        """`leaves_at_end`: where the source has ended, rather than that it can still be read."""
        # Without a colour of its own a terminal's own are used, and NO_COLOR has none at all rather than greys.
        super().__init__(ansi_color=True if os.environ.get("NO_COLOR") else None)
        self.source, self.board = source, board
        self.word = ""
        self.by = 0
        self.is_paused = False
        self.said = ""
        self._leaves_at_end = leaves_at_end
        self._drawn = (-1, -1, "", 0)
        self._is_laid_out = False
        self._next_drawing = 0.0

    def compose(self) -> ComposeResult:
        yield Static(id="head", classes="bar", markup=False)
        yield Static(id="totals", classes="line", markup=False)
        yield Pane((("process", 0), *COLUMNS), "processes")
        yield Pane((("model", 0), *COLUMNS), "models")
        yield Pane((("latest", 0), ("process", 0), ("model", 0), ("what", 0)), "latest")
        yield Input(placeholder="show only what has this text", id="filter", compact=True)
        yield Static(id="foot", classes="line", markup=False)

    def on_mount(self) -> None:
        self._lay_out(self.size.width)
        self._is_laid_out = True
        self.query_one("#processes").focus()
        for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is left as it was
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.source.start()
        self._look()
        self.set_interval(_EVERY_S, self._look)

    def on_resize(self, event: Resize) -> None:
        if self._is_laid_out:
            self._lay_out(event.size.width)

    def _pane(self, name: str) -> Pane:
        return self.screen_stack[0].query_one(f"#{name}", Pane)

    def _line(self, name: str, text: str) -> None:
        self.screen_stack[0].query_one(f"#{name}", Static).update(Text(visible(text), no_wrap=True, overflow="ellipsis"))

    def _lay_out(self, width: int) -> None:
        room = width - 1  # of the scroll bar
        figures_width = sum(wide for _, wide in COLUMNS)
        for name in ("processes", "models"):
            self._pane(name).lay_out((max(10, room - figures_width), *(wide for _, wide in COLUMNS)))
        names = max(8, min(40, (room - 9) * 2 // 7))
        self._pane("latest").lay_out((9, names, names, max(10, room - 9 - 2 * names)))

    def _look(self) -> None:
        for told in self.source.told(_TAKING_S):
            match told:
                case Said(text, is_end):
                    self.said = visible(text)
                    if is_end and self._leaves_at_end:
                        self.exit()
                case Stored(rows, losses):
                    self.board.take_stored(rows)
                    self.board.lost.update(losses)
                    self.board.changes += 1
                case _:
                    self.board.take(told)
        if time.monotonic() >= self._next_drawing:
            began = time.monotonic()
            self.draw()
            self._next_drawing = began + (time.monotonic() - began) * _DRAWING_SHARE

    def draw(self) -> None:
        """Where something is new, or time has gone on."""
        if not self.screen_stack:  # a tick that comes while the view is leaving
            return
        board = self.board
        now = (board.changes, board.now_ns // 1_000_000_000, self.word, self.by)
        self._say_foot()
        if self.is_paused or now == self._drawn:
            return
        self._drawn = now
        processes = sorted_rates(board.processes.rates(board.now_ns), SORTS[self.by], self.word)
        models = sorted_rates(board.models.rates(board.now_ns), SORTS[self.by], self.word)
        self._line("totals", totals(board))
        self._say_head()
        self._pane("processes").fill([_rates_row(one) for one in processes[:_MAX_ROWS]])
        self._pane("models").fill([_rates_row(one) for one in models[:_MAX_ROWS]])
        self._pane("latest").fill([_latest_row(line) for line in board.latest(self.word, _MAX_ROWS)])

    def _say_head(self) -> None:
        rates = list(self.board.models.rates(self.board.now_ns))
        requests, tokens = sum(one.requests for one in rates), sum(one.input_tokens + one.output_tokens for one in rates)
        state = "PAUSED  " if self.is_paused else ""
        only = f"  only {visible(self.word)!r}" if self.word else ""
        self._line("head", f"{state}{short(requests)} req/s  {short(tokens)} tok/s  by {SORTS[self.by]}{only}  {visible(self.source.name)}")

    def _say_foot(self) -> None:
        keys = "q quit  p pause  / filter  Enter open  s sort  Tab next  ? help"
        self._line("foot", self.said or keys)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        self.is_paused = not self.is_paused
        self._say_head()
        self.draw()

    def action_sort(self) -> None:
        self.by = (self.by + 1) % len(SORTS)
        self._say_head()
        self.draw()

    def action_ask(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.value = self.word
        asked.add_class("asked")
        asked.focus()

    def action_everything(self) -> None:
        self._only("")

    def action_help(self) -> None:
        if len(self.screen_stack) == 1:
            self.push_screen(Reading("Keys", HELP))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._only(event.value.strip())

    def _only(self, word: str) -> None:
        self.word = word[:200]
        asked = self.query_one("#filter", Input)
        if asked.has_class("asked"):
            asked.remove_class("asked")
            self.query_one("#latest").focus()
        self._say_head()
        self.draw()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        pane = event.data_table
        if not isinstance(pane, Pane) or (key := pane.key_at_cursor()) is None:
            return
        if pane.id != "latest":
            self._only(key)
        elif (line := self.board.line(key)) is not None and line.exchange_id:
            reading = Reading(line.exchange_id[:12], "…")
            self.push_screen(reading)
            self._read(reading, line)

    @work(thread=True)
    def _read(self, reading: Reading, line: Line) -> None:
        try:
            text = self.source.show(line.exchange_id)
        except LLMSecError as fault:
            known = "\n".join(
                f"{moment(one.at_ns)} {one.process} {one.model} {what(one)}" for one in self.board.of_exchange(line.exchange_id)
            )
            text = f"{visible(fault.lines()[0])}\n\n{known}\n"
        if len(text) > _MAX_TEXT:
            text = (
                text[:_MAX_TEXT]
                + f"\n… {len(text) - _MAX_TEXT:,} characters more: llmsec-analyze exchanges show {visible(line.exchange_id[:12])}\n"
            )
        self.call_from_thread(self._show, reading, text)

    def _show(self, reading: Reading, text: str) -> None:
        if reading.is_attached:
            reading.say(text)


def _cell(text: str, style: str = "") -> Text:
    return Text(visible(text), style=style, no_wrap=True, overflow="ellipsis", end="")


def _page(text: str) -> Text:
    return Text(visible(text, keep_lines=True))


def _rates_row(rates: Rates) -> tuple[str, tuple[Text, ...]]:
    style = "bold" if rates.risk >= 70 or (rates.error_share or 0) >= 0.5 else ""
    shown = (f"{text:>{width}}" for text, (_, width) in zip(figures(rates), COLUMNS, strict=True))
    return rates.name, (_cell(rates.name, style), *(_cell(text, style) for text in shown))


def _latest_row(line: Line) -> tuple[str, tuple[Text, ...]]:
    style = "red" if line.is_error else "bold" if line.severity.lower() in _GRAVE else "dim" if line.is_open else ""
    texts = (moment(line.at_ns), line.process, f" {line.model}", f" {what(line)}")
    return line.key, tuple(_cell(text, style) for text in texts)
