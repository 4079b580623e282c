"""Files of JSON lines that grow no further than their bound: the older half goes when the newer is full."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import msgspec


class BoundedLog:
    """`NAME.jsonl` and, before it, `NAME.1.jsonl`; each of half the bytes. Any thread may append."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._half = max_bytes // 2
        self._lock = threading.Lock()

    def append(self, record: Any) -> bool:
        """False where the folder does not take it."""
        line = msgspec.json.encode(record) + b"\n"
        with self._lock:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(self._path, flags, 0o600)
                try:
                    size = os.fstat(descriptor).st_size
                    os.write(descriptor, line)
                finally:
                    os.close(descriptor)
                if size + len(line) >= self._half:
                    self._path.rename(self._path.with_suffix(".1.jsonl"))
            except OSError:
                return False
        return True
