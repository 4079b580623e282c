"""A report as PDF, by the browser that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from llmsec_tap.errors import ConfigError, StorageError

_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS: Final = 120


def to_pdf(text: str) -> bytes:
    """An HTML file, printed. Raises ConfigError where there is no browser, StorageError where it fails, OSError."""
    browser = next((path for name in _BROWSERS if (path := shutil.which(name)) is not None), None)
    if browser is None:
        raise ConfigError("there is no Chromium or Chrome to print a PDF with", "install chromium, or write .html")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_text(text, encoding="utf-8", errors="replace")
        # Of root a browser wants to be without its sandbox; the file runs no script and loads nothing.
        options = [
            "--headless",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={folder}/profile",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        try:
            done = subprocess.run(  # noqa: S603 - a browser of this host, and names of ours
                [browser, *options, f"--print-to-pdf={made}", source.as_uri()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StorageError(f"{browser} did not print the report within {_SECONDS} s", "write .html") from None
        if done.returncode or not made.exists():
            raise StorageError(f"{browser} did not print the report", "write .html, and print that")
        return made.read_bytes()
