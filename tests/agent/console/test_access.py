"""Who comes into the console: logins and guesses at them, sessions, proxies, and the names that it is called by."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient
from typer.testing import CliRunner

from llmsec_agent.cli.analyze.app import app as commands
from llmsec_agent.console import attempts
from llmsec_agent.console.access import SECRET_HEADER, Access, Proxy, Sessions, User, hashed, matches, read_users
from llmsec_agent.console.app import console
from llmsec_agent.console.attempts import Attempts, address_of
from llmsec_agent.console.serving import ServeSettings, access_of, cookie_of
from llmsec_agent.console.serving import address_of as shown_address
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage import audit, create_store
from support.journal import Said

TOKEN = "a-token-of-sixteen-and-more"
PASSWORD = "correct horse"
BASE = "http://127.0.0.1:8765"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_store(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """With a secret."""
    path = tmp_path / "secret"
    path.write_text("proxy-secret-of-sixteen\n")
    path.chmod(0o600)
    return str(path)


def made(folder: Path, access: Access | None = None, journal: Said | None = None, **options: Any) -> Starlette:
    access = access or Access(TOKEN, {"ann": (hashed(PASSWORD), "analyst")})
    return console(str(folder), "store", access, journal or Said(), is_secure=False, **options)


def client(app: Starlette, peer: str = "127.0.0.1", base: str = BASE) -> TestClient:
    return TestClient(app, base_url=base, client=(peer, 1), follow_redirects=False)


@pytest.fixture
def unheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong answers come at once."""
    monkeypatch.setattr(attempts, "HELD_S", 0.0)


@pytest.mark.usefixtures("unheld")
def test_whoever_guesses_waits_and_nobody_else_does(folder: Path) -> None:
    app = made(folder)
    wrong, right = {"name": "ann", "password": "wrong"}, {"name": "ann", "password": PASSWORD}
    with client(app, "192.0.2.1") as guesser, client(app, "192.0.2.2") as other:
        assert [guesser.post("/login", data=wrong).status_code for _ in range(attempts.FREE)] == [401] * attempts.FREE
        refused = guesser.post("/login", data=right)
        assert refused.status_code == 429
        assert "try again in" in refused.text
        assert guesser.get(f"/login?token={TOKEN}").status_code == 303
        assert other.post("/login", data=right).status_code == 303


def test_a_name_waits_longer_each_time_and_is_free_again_later() -> None:
    now = 0.0
    tried, waits = Attempts(lambda: now), []
    for _ in range(attempts.FREE + 8):
        tried.failed("a", "ann")
        waits.append(tried.wait_s("a", "ann"))
        now += waits[-1]
        assert tried.wait_s("a", "ann") == 0
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    tried.passed("a", "ann")
    tried.failed("a", "ann")
    assert tried.wait_s("a", "ann") == 0
    for number in range(10_000):
        tried.failed(str(number), "ann")
    assert len(tried._wrong) == attempts._MOST_KEPT


def test_an_address_has_so_many_guesses_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong ones are held back, and meanwhile others of the address are refused; another one's is answered."""
    monkeypatch.setattr(attempts, "HELD_S", 3600.0)
    app = made(folder)

    async def tried() -> tuple[set[int], int]:
        def of(peer: str) -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(peer, 1)), base_url=BASE, timeout=60)

        async with of("192.0.2.1") as guesser, of("192.0.2.2") as other:
            held = [asyncio.create_task(guesser.get(f"/login?token={number}")) for number in range(4)]
            while app.state.pages.attempts._under_way["192.0.2.1"] < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # nothing tells of it
            refused = {(await guesser.get(f"/login?token={number}")).status_code for number in range(3)}
            passed = (await other.get(f"/login?token={TOKEN}")).status_code
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
        return refused, passed

    assert asyncio.run(tried()) == ({429}, 303)


def test_a_network_of_ipv6_is_one_address() -> None:
    assert address_of("2001:db8::1") == address_of("2001:db8::ffff:2") != address_of("2001:db8:0:1::1")
    assert (address_of("192.0.2.1"), address_of("testclient"), address_of(None)) == ("192.0.2.1", "testclient", "somewhere")


@pytest.mark.usefixtures("unheld")
def test_logins_are_in_the_audit_log_and_wrong_ones_in_the_journal_too(folder: Path) -> None:
    said = Said()
    with client(made(folder, journal=said), "192.0.2.1") as browser:
        browser.post("/login", data={"name": "ann", "password": "wrong"})
        browser.get("/login?token=wrong")
        browser.post("/login", data={"name": "ann", "password": PASSWORD})
        browser.get(f"/login?token={TOKEN}")
    found = [(entry.event, entry.facts["user"], entry.facts["state"]) for entry in audit.entries(create_store(folder))]
    assert found == [
        ("login", "ann", "login failed"), ("login", "token", "login failed"), ("login", "ann", "logged in"), ("login", "token", "logged in"),
    ]  # fmt: skip
    assert said.texts == ["a login failed from 192.0.2.1: as ann", "a login failed from 192.0.2.1: with a token"]


def test_a_log_out_ends_the_session_for_whoever_has_its_cookie(folder: Path) -> None:
    with client(made(folder)) as browser:
        browser.post("/login", data={"name": "ann", "password": PASSWORD})
        csrf = re.search(r'name="csrf" value="(\w+)"', browser.get("/taps").text)
        assert csrf is not None
        kept = dict(browser.cookies)
        assert browser.post("/logout", data={"csrf": csrf[1]}).status_code == 303
        browser.cookies.update(kept)
        assert browser.get("/taps").status_code == 303


def test_sessions_end_and_are_bounded() -> None:
    now = 0.0
    sessions = Sessions(lambda: now)
    first = sessions.begin(User("ann", "viewer"))
    assert sessions.user(first) == User("ann", "viewer")
    assert (sessions.user("other"), sessions.user(None), sessions.user(7)) == (None, None, None)
    now = 8 * 3600.0
    assert sessions.user(first) is None
    second = sessions.begin(User("ann", "viewer"))
    for _ in range(10_000):
        sessions.begin(User("bob", "viewer"))
    assert sessions.user(second) is None


def test_consoles_of_one_host_have_cookies_of_their_own(folder: Path) -> None:
    assert cookie_of(ServeSettings("s"), 1) == "llmsec-1"
    assert cookie_of(ServeSettings("s", certificate="c", key="k"), 8765) == "__Host-llmsec-8765"
    with client(made(folder, cookie="llmsec-7")) as browser:
        assert browser.get(f"/login?token={TOKEN}").headers["set-cookie"].startswith("llmsec-7=")


@pytest.mark.parametrize("body", ["&".join(f"f{number}=1" for number in range(40)), "csrf=%C3%A9", "csrf=é", "csrf=%ED%A0%80"])
def test_odd_forms_are_refused(folder: Path, body: str) -> None:
    with client(made(folder)) as browser:
        browser.get(f"/login?token={TOKEN}")
        headers = {"content-type": "application/x-www-form-urlencoded"}
        assert browser.post("/logout", content=body.encode(), headers=headers).status_code == 403
        assert browser.post("/login", content=body.encode(), headers=headers).status_code in (401, 403)


# Proxies.


@pytest.fixture
def behind(folder: Path) -> Iterator[Starlette]:
    """At an address that others reach, in the clear, for the proxy alone."""
    access, _ = access_of(ServeSettings("s", host="0.0.0.0", header="x-user", role_header="x-role", proxy="192.0.2.9"))
    return made(folder, access)


def shown(app: Starlette, peer: str, *headers: tuple[str, str | bytes]) -> tuple[int, str]:
    with client(app, peer) as browser:
        answer = browser.get("/taps", headers=headers)  # type: ignore[arg-type]
    who = re.search(r'<p class="who">store · (.*?)</p>', answer.text)
    return answer.status_code, who[1] if who else ""


@pytest.mark.parametrize(
    ("peer", "headers", "status", "who"),
    [
        ("192.0.2.9", [("x-user", "ann"), ("x-role", "analyst")], 200, "ann (analyst)"),
        ("::ffff:192.0.2.9", [("x-user", "ann")], 200, "ann (viewer)"),
        ("192.0.2.9", [("x-user", "eve:admin")], 200, "eve:admin (viewer)"),
        ("192.0.2.9", [("x-user", "ann"), ("x-role", "root")], 200, "ann (viewer)"),
        ("192.0.2.9", [("x-user", "ann"), ("x-role", "admin"), ("x-role", "viewer")], 200, "ann (viewer)"),
        ("192.0.2.9", [("x-user", "eve"), ("x-user", "ann")], 303, ""),
        ("192.0.2.9", [("x-user", "Jürgen".encode())], 200, "Jürgen (viewer)"),
        ("192.0.2.9", [], 303, ""),
        ("192.0.2.10", [("x-user", "ann")], 403, ""),
        ("192.0.2.10", [], 403, ""),
    ],
)
def test_a_proxy_alone_names_users(behind: Starlette, peer: str, headers: list[tuple[str, str]], status: int, who: str) -> None:
    assert shown(behind, peer, *headers) == (status, who)


def test_a_name_that_is_no_text_is_nobody() -> None:
    scope = {"type": "http", "client": ("192.0.2.9", 1), "headers": [(b"x-user", b"\xff")]}
    assert Proxy(ip_address("192.0.2.9"), "x-user").user(HTTPConnection(scope)) is None


def test_a_proxy_of_this_host_has_a_secret(folder: Path, file: str) -> None:
    access, _ = access_of(ServeSettings("s", header="x-user", proxy="127.0.0.1", secret_file=file))
    app, user, right = made(folder, access), ("x-user", "ann"), (SECRET_HEADER, "proxy-secret-of-sixteen")
    assert shown(app, "127.0.0.1", user, right) == (200, "ann (viewer)")
    for wrong in ([], [(SECRET_HEADER, "x")], [(SECRET_HEADER, "é".encode())], [right, right]):
        assert shown(app, "127.0.0.1", user, *wrong)[0] == 303


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("console.example", {"origin": "https://console.example"}),
        ("127.0.0.1:8765", {"origin": "https://console.example"}),
        ("127.0.0.1:8765", {"sec-fetch-site": "same-origin"}),
        ("127.0.0.1:8765", {"origin": "https://evil.example"}),
        ("127.0.0.1:8765", {}),
    ],
)
def test_through_a_proxy_with_a_public_name_things_are_decided(folder: Path, file: str, host: str, said: dict[str, str]) -> None:
    access, _ = access_of(ServeSettings("s", header="x-user", proxy="127.0.0.1", secret_file=file, public="Console.Example"))
    given = {"x-user": "ann", SECRET_HEADER: "proxy-secret-of-sixteen", "host": host, **said}
    with client(made(folder, access)) as browser:
        answer = browser.post("/exchanges/1/findings/2", data={"do": "acknowledge"}, headers=given)
    assert ("Not for your role" in answer.text) == (bool(said) and "evil" not in str(said)), answer.text


@pytest.mark.parametrize(
    ("begun", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1", 303), ("127.0.0.1", "LOCALHOST:8765", 303), ("127.0.0.1", "localhost.:1", 303), ("::1", "[::1]", 303), ("::1", "[::1]:443", 303),
        ("127.0.0.2", "127.0.0.2:8765", 303), ("127.0.0.1", "127.0.0.2", 421), ("127.0.0.1", "evil.example", 421), ("127.0.0.1", "evil.example:127.0.0.1", 421),
        ("127.0.0.1", "[evil", 421), ("127.0.0.1", "127.0.0.1@evil.example", 421), ("127.0.0.1", "", 421),
    ],
)  # fmt: skip
def test_it_answers_to_the_names_that_it_prints(folder: Path, begun: str, host: str, status: int) -> None:
    access, _ = access_of(ServeSettings("s", host=begun))
    with client(made(folder, access)) as browser:
        assert browser.get("/taps", headers={"host": host}).status_code == status


def test_the_address_that_is_printed() -> None:
    assert shown_address(ServeSettings("s"), 80) == "http://127.0.0.1:80/"
    assert shown_address(ServeSettings("s", host="::1", certificate="c", key="k"), 443) == "https://[::1]:443/"


# Files of users.


@pytest.mark.parametrize("name", ["#ann", " ann", "ann\n", "", "a" * 129, "a\u202eb"])
def test_a_name_that_its_file_would_not_give_back_is_refused(name: str) -> None:
    answer = CliRunner().invoke(commands, ["serve", "--add-user", f"{name}:viewer"], input=f"{PASSWORD}\n")
    assert answer.exit_code != 0
    assert "no name for a line" in str(answer.exception) + answer.output


def test_a_password_of_a_file_with_carriage_returns_is_without_them(tmp_path: Path) -> None:
    answer = CliRunner().invoke(commands, ["serve", "--add-user", "ann:viewer"], input=f"{PASSWORD}\r\n")
    users = tmp_path / "users"
    users.write_bytes(answer.stdout.replace("\n", "\r\n").encode())
    users.chmod(0o600)
    assert matches(PASSWORD, read_users(str(users))["ann"][0])


def test_a_device_is_no_file_of_users_and_is_left_as_it_is(tmp_path: Path) -> None:
    open_to_all = tmp_path / "users"
    open_to_all.write_text("")
    open_to_all.chmod(0o644)
    for path in (os.devnull, str(open_to_all)):
        with pytest.raises(ConfigError) as raised:
            read_users(path)
        assert "file of your own" in raised.value.hint
        assert "chmod" not in raised.value.hint
