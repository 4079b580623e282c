"""What a tap says to who looks: nothing unless somebody does, each line once, and nothing of a hostile folder."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from llmsec_tap.storage import Store, create_store
from llmsec_tap.storage import live_feed as feed
from support.exchanges import full_exchange


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "store")


def line(number: int) -> bytes:
    return msgspec.json.encode(feed.Line(exchange_id=f"{number:032x}", ts_ns=number, what="m")) + b"\n"


def ids(lines: list[feed.Line]) -> list[int]:
    return [int(one.exchange_id, 16) for one in lines]


def test_nothing_is_written_unless_somebody_looks(store: Store) -> None:
    writer = feed.FeedWriter(store)
    writer.look()
    assert not writer.is_watched
    assert list((store.root / "live").glob("feed-*")) == []
    reader = feed.FeedReader(store)
    assert reader.lines() == []
    writer.look()
    assert writer.is_watched
    writer.write([line(1), line(2)])
    assert ids(reader.lines()) == [1, 2]
    writer.write([line(3)])
    assert ids(reader.lines()) == [3]
    assert reader.lines() == []
    # A second one that comes later is not told what was said before.
    second = feed.FeedReader(store)
    assert second.lines() == []
    second.close()
    reader.close()
    writer.look()
    assert not writer.is_watched
    assert list((store.root / "live").glob("feed-*")) == []


def test_the_lock_needs_no_right_to_write(store: Store) -> None:
    """A console begun by root reads the folder of another user, and may write nothing there."""
    writer = feed.FeedWriter(store)
    (store.root / "live").chmod(0o500)
    (store.root / "live" / "watched").chmod(0o400)
    reader = feed.FeedReader(store)
    reader.lines()
    writer.look()
    assert writer.is_watched
    (store.root / "live").chmod(0o700)
    reader.close()
    writer.look()
    assert not writer.is_watched


def test_a_large_file_begins_anew_and_is_read_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_FILE", 1000)
    writer, reader = feed.FeedWriter(store), feed.FeedReader(store)
    reader.lines()
    writer.look()
    said: list[int] = []
    for number in range(200):
        writer.write([line(number)])
        if number % 3 == 0:
            said += ids(reader.lines())
    said += ids(reader.lines())
    assert said == sorted(set(said))
    assert len(said) > 150  # what stood in a file that began anew between two looks comes with the parts
    assert max(path.stat().st_size for path in (store.root / "live").glob("feed-*")) < 1200


def test_what_killed_taps_left_goes_with_the_next_one(store: Store) -> None:
    writer, reader = feed.FeedWriter(store), feed.FeedReader(store)
    reader.lines()
    writer.look()
    writer.write([line(1), line(3)])
    folder = store.root / "live"
    for number in range(70):
        (folder / f"feed-0{number}.jsonl").write_bytes(line(number))
    feed.FeedWriter(store)
    assert [path.name for path in folder.glob("feed-*")] == [f"feed-{os.getpid()}.jsonl"]
    assert ids(reader.lines()) == [1, 3]
    # Somebody has deleted the file of one that lives.
    (folder / f"feed-{os.getpid()}.jsonl").unlink()
    writer.write([line(2)])
    assert ids(reader.lines()) == [2]


def test_a_line_holds_no_content() -> None:
    exchange = full_exchange(1)
    made = msgspec.json.encode(feed.line_of(msgspec.structs.replace(exchange, response_model="m" * 10_000)))
    assert len(made) < 1000
    for text in (exchange.input_text, exchange.output_text):
        assert text
        assert text.encode() not in made


def test_what_others_put_there_is_bounded_and_no_fault(store: Store, tmp_path: Path) -> None:
    writer, reader = feed.FeedWriter(store), feed.FeedReader(store)
    reader.lines()
    folder = store.root / "live"
    (folder / "feed-1.jsonl").write_bytes(b"{\n\xff\n[]\n" + line(7) + b'{"exchange_id": 3}\n' + line(8)[:-1])
    (folder / "feed-2.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(folder / "feed-3.jsonl")
    (folder / "feed-4.jsonl").mkdir()
    (folder / "feed-5.jsonl").write_bytes(b"x" * (3 << 20))
    for number in range(100):
        (folder / f"feed-9{number}.jsonl").write_bytes(line(number))
    assert ids(reader.lines())[:1] == [7]
    for _ in range(5):
        reader.lines()
    with (folder / "feed-1.jsonl").open("ab") as file:
        file.write(b"\n")
    assert ids(reader.lines()) == [8]
    # A writer whose place somebody else has taken writes nothing elsewhere.
    secret = tmp_path / "secret"
    secret.write_text("keep")
    writer.look()
    (folder / f"feed-{os.getpid()}.jsonl").symlink_to(secret)
    writer.write([line(1)])
    assert secret.read_text() == "keep"
