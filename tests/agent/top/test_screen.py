"""Keys of the live view, and what it draws of hostile names, over events given by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

pytest.importorskip("textual", reason="the extra `top`")

from textual.pilot import Pilot
from textual.widgets import Input, Static

from llmsec_agent.top.board import SORTS, Board, Line
from llmsec_agent.top.facts import Ended, ExchangeFacts, Lost, ProcessFacts, UsageFacts
from llmsec_agent.top.screen import Pane, Top
from llmsec_agent.top.sources import Said, Told
from llmsec_tap.errors import SourceError
from support.hostile import HOSTILE

NOW = 1_795_000_000_000_000_000


class Given:
    """A source of what a test puts in."""

    name = "given"

    def __init__(self) -> None:
        self.items: list[Told] = []
        self.asked: list[str] = []
        self.text: str | None = "the record"

    def start(self) -> None: ...

    def told(self, within_s: float) -> Iterator[Told]:
        while self.items:
            yield self.items.pop(0)

    def show(self, exchange_id: str) -> str:
        self.asked.append(exchange_id)
        if self.text is None:
            raise SourceError("gone", "too late")
        return self.text

    def close(self) -> bool:
        return True


def ended(number: int, model: str = "gpt-4o", comm: str = "python", **facts: object) -> Ended:
    exchange = ExchangeFacts(
        exchange_id=f"{number:032x}", provider="openai", request_model=model, process=ProcessFacts(pid=number, comm=comm), status=200, risk_score=0, **facts
    )  # type: ignore[arg-type]  # fmt: skip
    return Ended(ts_ns=NOW + number, exchange=exchange)


def shown(app: Top, name: str) -> list[str]:
    return ["|".join(cell.plain.strip() for cell in cells) for _, cells in app.screen_stack[0].query_one(f"#{name}", Pane).shown]


def line(app: Top, name: str) -> str:
    return str(app.screen_stack[0].query_one(f"#{name}", Static).content)


def written(app: Top) -> str:
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def drawn(script: Callable[[Top, Given, Pilot[None]], Awaitable[None]], *items: Told) -> None:
    """The script runs in a screen of 80 x 24 that has taken the items."""

    async def run() -> None:
        source = Given()
        source.items = list(items)
        app = Top(source, Board(NOW, monotonic=lambda: 0))
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause(0.1)
            await script(app, source, pilot)

    asyncio.run(run())


async def taken(pilot: Pilot[None]) -> None:
    await pilot.pause(0.4)


def test_tables_and_the_latest_show_what_ended() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        assert [row.split("|")[0] for row in shown(app, "processes")] == ["python[1]", "python[2]"]
        assert [row.split("|")[0] for row in shown(app, "models")] == ["gpt-4o", "llama"]
        assert [row.split("|")[2:] for row in shown(app, "latest")] == [["llama", "200 3/~4 tok"], ["gpt-4o", "200 3/~4 tok"]]
        assert "0.4 req/s" in line(app, "head")
        assert line(app, "totals").startswith("LOST records 7  partial 0  unscanned 0 | 2 exchanges")

    counted = {"usage": UsageFacts(input_tokens=3), "usage_estimated": UsageFacts(output_tokens=4)}
    drawn(script, ended(1, **counted), ended(2, "llama", **counted), Lost(ts_ns=NOW, what="records", count=7))


def test_a_filter_shows_only_what_has_the_text_and_escape_shows_all() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"LLA", "enter")
        assert [row.split("|")[0] for row in shown(app, "models")] == ["llama"]
        assert len(shown(app, "latest")) == 1
        assert "only 'LLA'" in line(app, "head")
        await pilot.press("escape")
        assert len(shown(app, "models")) == 2
        await pilot.press("slash", "q", "escape")  # a key inside the field is text, not the command
        assert not app.query_one(Input).has_class("asked")
        assert len(shown(app, "models")) == 2

    drawn(script, ended(1), ended(2, "llama"))


def test_a_pause_holds_the_picture_and_loses_nothing() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.press("p")
        source.items.append(ended(2, "llama"))
        await taken(pilot)
        assert len(shown(app, "models")) == 1
        assert line(app, "head").startswith("PAUSED")
        await pilot.press("space")
        assert len(shown(app, "models")) == 2
        assert not line(app, "head").startswith("PAUSED")

    drawn(script, ended(1))


def test_s_goes_through_all_orders() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        seen = []
        for _ in SORTS:
            await pilot.press("s")
            seen.append((line(app, "head").split("  by ")[1].split("  ")[0], shown(app, "models")[0].split("|")[0]))
        assert [order for order, _ in seen] == [*SORTS[1:], SORTS[0]]
        assert dict(seen)["tokens"] == "few but large"
        assert dict(seen)["rate"] == "many"

    drawn(script, ended(1, "many"), ended(2, "many"), ended(3, "few but large", usage=UsageFacts(input_tokens=1000)))


def test_enter_opens_a_record_and_escape_comes_back() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.press("tab", "tab", "enter")
        await taken(pilot)
        assert source.asked == [f"{2:032x}"]
        assert str(app.screen.query_one("#text", Static).content) == "the record"
        await pilot.press("escape")
        assert len(app.screen_stack) == 1
        source.text = None
        await pilot.press("down", "enter")
        await taken(pilot)
        assert source.asked[1] == f"{1:032x}"
        assert "gone (too late)" in str(app.screen.query_one("#text", Static).content)
        assert "gpt-4o" in str(app.screen.query_one("#text", Static).content)

    drawn(script, ended(1), ended(2))


def test_a_record_longer_than_a_screen_should_lay_out_is_cut_and_says_so() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        source.text = "x" * 150_000
        await pilot.press("tab", "tab", "enter")
        await taken(pilot)
        assert "50,000 characters more" in str(app.screen.query_one("#text", Static).content)

    drawn(script, ended(1))


def test_enter_on_a_model_shows_only_that() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.press("tab", "down", "enter")
        assert [row.split("|")[2] for row in shown(app, "latest")] == ["llama"]

    drawn(script, ended(1), ended(2, "llama"))


def test_the_cursor_stays_with_its_record_while_new_ones_come() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.press("tab", "tab", "down")
        pane = app.query_one("#latest", Pane)
        held = pane.key_at_cursor()
        source.items += [ended(number) for number in range(3, 9)]
        await taken(pilot)
        assert pane.key_at_cursor() == held == f"e{1:032x}"
        assert pane.cursor_row == 7

    drawn(script, ended(1), ended(2))


def test_rows_that_go_leave_the_table() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        for word, rows in (("m1", 11), ("m19", 1), ("nothing", 0)):
            await pilot.press("slash", *(["backspace"] * 10), *word, "enter")
            assert app.query_one("#models", Pane).row_count == len(shown(app, "models")) == rows
        await pilot.press("escape")
        assert app.query_one("#models", Pane).row_count == 20

    drawn(script, *(ended(number, f"m{number}") for number in range(20)))


def test_resizing_lays_out_again_with_the_same_rows() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        before = shown(app, "latest")
        for size in ((120, 40), (40, 10), (80, 24)):
            await pilot.resize_terminal(*size)
            await taken(pilot)
            assert shown(app, "latest") == before
            assert app.query_one("#latest", Pane).row_count == len(before)

    drawn(script, ended(1), ended(2))


@pytest.mark.parametrize("name", [*HOSTILE, "[red]not markup[/red]", "[", "漢字" * 40, "e\u0301" * 50, "x" * 5000])
def test_names_from_the_wire_are_text(name: str) -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        screen = written(app)
        assert not any(char in screen for char in "\x1b\x9b\u202e\u200b\u2066\x07")
        if len(name) < 15 or name.startswith("[red]"):
            assert name.strip() in screen
        assert len(shown(app, "models")) == 1

    drawn(script, ended(1, name, comm=name), Said(name))


@pytest.mark.parametrize("name", [*HOSTILE, "A\x1b]0;PWNED\x07" + "x" * 10_000])
def test_nothing_that_is_drawn_steers_the_terminal(name: str) -> None:
    """Whoever forgot to make it harmless before."""

    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        app.board.lost = {name: 7}
        app.board._put(Line(key="k", exchange_id=name, kind="alert", at_ns=NOW, process=name, model=name, note=name))
        app.board.changes += 1
        source.text = name
        await taken(pilot)
        screens = [written(app)]
        await pilot.press("tab", "tab", "enter")
        await taken(pilot)
        screens.append(written(app))
        assert len(app.screen_stack) == 2
        for screen in screens:
            assert not any(char in screen for char in "\x1b\x9b\u202e\u200b\u2066\x07")

    drawn(script, ended(1))


def test_help_and_leaving() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        assert "pause what is drawn" in str(app.screen.query_one("#text", Static).content)
        await pilot.press("q")
        assert len(app.screen_stack) == 1
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running

    drawn(script, ended(1))


def test_a_tick_while_it_leaves_is_no_fault() -> None:
    left: list[Top] = []

    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        left.append(app)
        await pilot.press("q")

    drawn(script, ended(1))
    assert not left[0].screen_stack
    left[0].draw()


def test_many_events_at_once_are_bounded() -> None:
    async def script(app: Top, source: Given, pilot: Pilot[None]) -> None:
        await pilot.pause(0.5)
        assert app.query_one("#models", Pane).row_count == 200
        assert app.query_one("#latest", Pane).row_count == 200
        assert app.board.exchanges == 3000

    drawn(script, *(ended(number, f"model {number}") for number in range(3000)))
