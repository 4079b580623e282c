"""The fingerprint key: made once and kept; a file that cannot hold a good key is refused with one line."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmsec_tap.errors import ConfigError
from llmsec_tap.install_key import KEY_VARIABLE, install_key
from llmsec_tap.journal import SILENT


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "state" / "fingerprint.key"
    monkeypatch.setenv(KEY_VARIABLE, str(file))
    return file


def write(file: Path, key: bytes, mode: int = 0o600) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(key)
    file.chmod(mode)


def test_made_once_and_private(key_file: Path) -> None:
    first = install_key(SILENT)
    assert len(first) == 32
    assert install_key(SILENT) == first
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_a_longer_key_and_a_hex_key_are_taken(key_file: Path) -> None:
    for key in (secrets.token_bytes(64), secrets.token_hex(32).encode()):
        write(key_file, key)
        assert install_key(SILENT) == key


@pytest.mark.parametrize(
    ("key", "mode"),
    [
        (secrets.token_bytes(32), 0o644),
        (secrets.token_bytes(32), 0o640),
        (secrets.token_bytes(32), 0o666),
        (secrets.token_bytes(31), 0o600),
        (secrets.token_bytes(4096), 0o600),
        (b"", 0o600),
        (bytes(32), 0o600),
        (b"a" * 32, 0o600),
        (b"abab" * 16, 0o600),
    ],
    ids=["all read", "group reads", "all write", "short", "long", "empty", "zeros", "one letter", "two letters"],
)
def test_weak_ones_are_refused(key_file: Path, key: bytes, mode: int) -> None:
    write(key_file, key, mode)
    with pytest.raises(ConfigError):
        install_key(SILENT)
    assert key_file.read_bytes() == key


def test_what_is_no_file_is_refused_at_once(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file.parent.mkdir()
    os.mkfifo(key_file, 0o600)
    for name in (str(key_file), "/dev/zero", "/dev/null", str(key_file.parent)):
        monkeypatch.setenv(KEY_VARIABLE, name)
        with pytest.raises(ConfigError):
            install_key(SILENT)


def test_one_line_and_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, KEY_VARIABLE: "/dev/zero"}
    command = [sys.executable, "-m", "llmsec_agent.cli.analyze.app", "scan", "-"]
    result = subprocess.run(command, env=environment, capture_output=True, input=b"x", check=False, timeout=60)
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr
    assert result.stderr.count(b"\n") <= 2
