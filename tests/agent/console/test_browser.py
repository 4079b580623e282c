"""The console in Debian's Chromium: nothing hostile runs, axe finds nothing grave, it fits a page at 200 %, its forms work, and the live page lives."""

from __future__ import annotations

import datetime as dt
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
from llmsec_tap.storage.taps import Beat, Probe, write_beat
from support.agent import environment
from support.exchanges import full_exchange
from support.hostile import HOSTILE, START, exchange

pytestmark = pytest.mark.usefixtures("browser")
# Screenshots are kept as build output, for people to look at.
SHOTS = Path(__file__).parents[3] / "build" / "screenshots"
PAGES = {
    "overview": "/?since=all", "exchanges": "/exchanges", "exchange": f"/exchanges/{1:032x}", "findings": "/findings?since=all", "alerts": "/alerts?since=all",
    "deviations": "/deviations?since=all", "tenants": "/tenants?since=all", "workloads": "/workloads?since=all", "taps": "/taps", "live": "/live", "fault": "/exchanges?status=x",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser") / "store"
    writer = StoreWriter(create_store(root))
    for number in range(60):
        writer.add(exchange(number, HOSTILE[number % len(HOSTILE)], HOSTILE[(number + 1) % len(HOSTILE)]))
    writer.close()
    return root


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """Where to log in."""
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "serve", "--store", str(store), "--port", "0"]
    command += ["--suppressions", str(store.parent / "suppressions.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        found = re.search(r"http://\S+", said)
        assert found is not None, said + server.stderr.read()
        try:
            yield found[0]
        finally:
            server.terminate()


class Watched:
    """A page, and what went wrong in it: dialogs, errors, what the policy of the page refused, requests to elsewhere."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.wrong.append(message.text) if message.type == "error" and "status of 4" not in message.text else None,
        )
        self.page.on(
            "request",
            lambda request: self.wrong.append(request.url) if not request.url.startswith(address.split("/login", maxsplit=1)[0]) else None,
        )
        self.page.goto(address)
        self.base = address.split("/login", maxsplit=1)[0]

    def open(self, path: str) -> Any:
        self.page.goto(self.base + path, wait_until="load")
        return self.page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_safe_and_for_everybody(browser: Any, address: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    watched = Watched(browser, address, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    SHOTS.mkdir(parents=True, exist_ok=True)
    axe = Axe()
    grave = {}
    for name, path in PAGES.items():
        page = watched.open(path)
        page.screenshot(path=SHOTS / f"{name}-{scheme}.png", full_page=True)
        found = axe.run(page).response["violations"]
        grave[name] = [
            (violation["id"], violation["nodes"][0]["html"][:200]) for violation in found if violation["impact"] in ("serious", "critical")
        ]
    assert watched.wrong == []
    assert {name: found for name, found in grave.items() if found} == {}
    watched.context.close()


def test_the_keyboard_reaches_the_content_first(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    page = watched.open("/exchanges")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    watched.context.close()


def test_text_stays_text_in_its_direction(browser: Any, address: str) -> None:
    watched = Watched(browser, address)
    page = watched.open(f"/exchanges/{4:032x}")
    shown = page.locator(".passage.request .text").first.inner_text()
    assert "\\u202e" in shown
    assert "\u202e" not in shown
    watched.context.close()


def test_an_exchange_is_on_the_live_page_within_seconds(browser: Any, address: str, store: Path) -> None:
    watched = Watched(browser, address)
    page = watched.open("/live")
    page.locator("#live-state").filter(has_text=re.compile("^Following")).wait_for()  # the page's policy lets no function be polled
    now = time.time_ns()
    writer = StoreWriter(create_store(store))
    made = exchange(999, HOSTILE[0])
    made.started_ns, made.ended_ns, made.request_model = now - 5_000_000, now, HOSTILE[1]
    writer.add(made)
    writer.close()
    page.wait_for_selector(f"a[href='/exchanges/{999:032x}']", timeout=10_000)
    assert HOSTILE[1] in page.locator("table[data-live] tbody tr").first.inner_text()
    assert watched.wrong == []
    watched.context.close()


def test_all_forms_work_in_a_browser(browser: Any, address: str, store: Path) -> None:
    watched = Watched(browser, address)
    page, token = watched.page, address.split("token=", 1)[1]
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Overview").wait_for()

    page = watched.open(f"/exchanges/{1:032x}")
    found = page.locator("ul.found > li").first
    found.get_by_text("Decide", exact=True).click()
    found.get_by_label("Note").fill("looked into")
    found.get_by_role("button", name="Acknowledge").click()
    found.get_by_text("looked into").wait_for()
    found.get_by_text("Decide", exact=True).click()
    found.get_by_label("Reason").fill("a drill")
    found.get_by_role("button", name="Suppress").click()
    found.get_by_text("suppressed until").wait_for()
    assert "a drill" in (store.parent / "suppressions.yaml").read_text()
    assert watched.wrong == []
    watched.context.close()


@pytest.fixture(scope="module")
def with_all(store: Path) -> None:
    """A run of a tap with what it read from, the widest table; an exchange with alerts and deviations."""
    writer = StoreWriter(create_store(store))
    writer.add(msgspec.structs.replace(full_exchange(1), exchange_id="f" * 32, started_ns=START))
    writer.close()
    at_ns = time.time_ns()
    probe = Probe(
        reads="OpenSSL",
        target=f"/usr/lib/{'a-long-name-' * 6}/libssl.so.3",
        symbols="SSL_read SSL_write SSL_read_ex SSL_write_ex",
        processes=3,
    )
    beat = Beat(
        node="node-of-a-cluster",
        pid=77,
        version="1.2.3",
        started_ns=START,
        heartbeat_ns=at_ns,
        probes=(probe,),
        probed=1,
        lost_records=1_234_567,
    )
    write_beat(create_store(store), beat)


@pytest.mark.usefixtures("with_all")
def test_at_200_percent_no_page_scrolls_sideways_and_tables_do_by_keys(browser: Any, address: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    watched = Watched(browser, address, viewport={"width": 640, "height": 480}, device_scale_factor=2)
    wide, grave, scrolled = {}, {}, 0
    for name, path in {**PAGES, "probes": f"/taps?started={START}&pid=77"}.items():
        page = watched.open(path)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 640:
            wide[name] = width
        grave |= {
            f"{name} {found['id']}": found["nodes"][0]["html"][:200]
            for found in Axe().run(page).response["violations"]
            if found["impact"] in ("serious", "critical")
        }
        assert page.locator("table").count() == page.locator(".scroll > table").count(), name
        for box in page.locator(".scroll:visible").all():
            if box.evaluate("box => box.scrollWidth > box.clientWidth"):
                box.focus()
                box.press("ArrowRight")
                deadline = time.monotonic() + 10
                while not box.evaluate("box => box.scrollLeft"):
                    assert time.monotonic() < deadline, name
                scrolled += 1
    assert (wide, grave) == ({}, {})
    assert scrolled > 3
    watched.context.close()


@pytest.mark.usefixtures("with_all")
def test_times_are_in_the_readers_zone_and_what_is_in_utc_says_so(browser: Any, address: str) -> None:
    watched = Watched(browser, address, timezone_id="Asia/Kolkata", locale="en-GB")
    for path in ("/exchanges", "/findings?since=all", "/alerts?since=all", "/deviations?since=all"):
        page = watched.open(path)
        times = page.locator("td time")
        assert times.count() > 0, path
        for number in range(min(times.count(), 3)):
            utc = times.nth(number).get_attribute("datetime")
            local = dt.datetime.fromisoformat(utc).astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
            assert times.nth(number).inner_text() == local.strftime("%d/%m/%Y, %H:%M:%S"), path
            assert times.nth(number).get_attribute("title") == f"{utc} (UTC)"
        assert not re.search(r"\d{2}:\d{2}:\d{2}Z", page.locator("main").inner_text()), path
    page = watched.open("/exchanges")
    assert page.get_by_label("Since (2h, 7d, or a date in UTC)").count() == page.get_by_label("Until (in UTC)").count() == 1
    assert ">UTC<" in watched.context.request.get(f"{watched.base}/charts/tokens.svg?since=all").text()
    watched.context.close()
