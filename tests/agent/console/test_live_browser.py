"""The live page in Debian's Chromium: what it says when the console restarts or its store goes, a pause, and pages that are hidden."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmsec_tap.storage import StoreWriter, create_store
from support.agent import environment
from support.hostile import exchange

pytestmark = pytest.mark.usefixtures("browser")
TOKEN = "a-token-of-sixteen-and-more"
_WAIT_MS = 30_000


class Console:
    """`serve` over a store, which can be ended and begun again at its address."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self._token = folder / "token"
        self._token.write_text(TOKEN)
        self._token.chmod(0o600)
        create_store(self.store)
        self.port = 0
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "serve", "--store", str(self.store), "--port", str(self.port)]
        self._server = subprocess.Popen([*command, "--token-file", str(self._token)], stderr=subprocess.PIPE, text=True, env=environment())
        assert self._server.stderr is not None
        said = self._server.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        if found is None:
            self._server.kill()
            raise AssertionError(said + self._server.stderr.read())
        self.address, self.port = found[0], int(found[1])

    def end(self) -> None:
        self._server.kill()
        self._server.wait()
        assert self._server.stderr is not None
        self._server.stderr.close()

    def fill(self, *numbers: int) -> None:
        """One part of exchanges that end now."""
        now_ns = time.time_ns()
        writer = StoreWriter(create_store(self.store))
        for number in numbers:
            writer.add(msgspec.structs.replace(exchange(number), started_ns=now_ns - 10**8, ended_ns=now_ns + number))
        writer.close()


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path)
    yield made
    made.end()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context()
    yield made
    made.close()


def following(context: Any, console: Console) -> Any:
    page = context.new_page()
    page.goto(f"{console.address}/login?token={TOKEN}")
    page.goto(f"{console.address}/live")
    says(page, "^Following the store")
    return page


def says(page: Any, text: str) -> None:
    page.locator("#live-state").filter(has_text=re.compile(text)).wait_for(timeout=_WAIT_MS)


def has(page: Any, number: int) -> None:
    page.locator(f"table[data-live] a[href='/exchanges/{number:032x}']").wait_for(timeout=_WAIT_MS)


def shown(page: Any) -> list[int]:
    links = page.locator("table[data-live] tbody a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    return [int(link.rpartition("/")[2], 16) for link in links]


def turn(page: Any, state: str) -> None:
    """Chromium without a screen hides no page."""
    page.evaluate(
        """state => {
            Object.defineProperty(document, 'visibilityState', { get: () => state, configurable: true });
            Object.defineProperty(document, 'hidden', { get: () => state === 'hidden', configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        state,
    )


def test_after_a_restart_it_says_to_log_in_again_and_then_goes_on(console: Console, context: Any) -> None:
    page = following(context, console)
    console.fill(1)
    has(page, 1)
    console.end()
    says(page, "does not answer")
    console.begin()
    says(page, "^You are not logged in any more")
    assert page.locator("#live-login a").get_attribute("href") == "/login?next=/live"
    assert page.locator("#live-login").is_visible()
    console.fill(2)
    context.new_page().goto(f"{console.address}/login?token={TOKEN}")
    says(page, "^Following the store")
    has(page, 2)
    assert shown(page) == [2, 1]
    assert not page.locator("#live-login").is_visible()


def test_an_answer_that_is_an_error_is_said_and_asked_for_again(console: Console, context: Any) -> None:
    page = following(context, console)
    page.route("**/live/events*", lambda route: route.fulfill(status=503, body="too much"))
    turn(page, "hidden")
    turn(page, "visible")
    says(page, r"answers with an error \(503\)")
    page.unroute("**/live/events*")
    says(page, "^Following the store")


def test_a_store_that_is_gone_is_said_until_it_is_back(console: Console, context: Any) -> None:
    console.fill(1)
    page = following(context, console)
    away = console.store.with_name("away")
    console.store.rename(away)
    says(page, "^The store cannot be followed")
    away.rename(console.store)
    says(page, "^Following the store")


def test_what_comes_in_a_pause_is_shown_after_it(console: Console, context: Any) -> None:
    page = following(context, console)
    page.locator("#live-pause").click()
    console.fill(1)
    page.get_by_role("button", name="Go on (1)").wait_for(timeout=_WAIT_MS)
    console.fill(*range(2, 152))
    console.fill(*range(152, 262))
    says(page, "^Following the store. Paused. 61 more were stored")
    assert page.locator("#live-pause").inner_text() == "Go on (200)"
    assert shown(page) == []
    page.locator("#live-pause").click()
    assert shown(page) == list(range(261, 61, -1))
    says(page, "^Following the store. 61 more")


def test_hidden_pages_leave_the_browsers_connections_and_are_told_what_they_missed(console: Console, context: Any) -> None:
    pages = []
    for _ in range(6):
        page = following(context, console)
        turn(page, "hidden")
        pages.append(page)
    other = context.new_page()
    other.goto(f"{console.address}/taps")
    assert other.title().startswith("Taps")
    console.fill(*range(1, 221))
    turn(pages[0], "visible")
    says(pages[0], "^Following the store. 20 more were stored")
    assert shown(pages[0]) == list(range(220, 20, -1))
