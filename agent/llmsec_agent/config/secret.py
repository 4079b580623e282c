"""Values that must not be shown: the configuration holds where a secret is, never the secret, and it is read only where it is used."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from llmsec_tap.errors import ConfigError

# Keys and passwords are a line; a webhook's address some hundred bytes.
MAX_SECRET_BYTES: Final = 64 << 10
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Secret:
    """A reference to a secret: `env:NAME` or `file:/path`. Its text is given by `read`, and by nothing else: no repr, no comparison."""

    __slots__ = ("reference",)

    def __init__(self, reference: str) -> None:
        """Raises ValueError, with a sentence that does not hold the text, for what is no reference."""
        kind, _, place = reference.partition(":")
        if (kind == "env" and _VARIABLE.fullmatch(place)) or (kind == "file" and place.strip() and "\0" not in place):
            self.reference = reference
        else:
            raise ValueError("a secret does not stand in the configuration itself: write env:NAME or file:/path")

    def __repr__(self) -> str:
        return f"Secret({self.reference})"

    @property
    def path(self) -> Path | None:
        """The file it is in, if it is in one."""
        return Path(self.reference.removeprefix("file:")) if self.reference.startswith("file:") else None

    def read(self) -> str:
        """The secret, without the line feed at its end. Raises ConfigError that says where it should be, and never what was there."""
        path = self.path
        if path is not None:
            return _clean(_from_file(path), str(path))
        name = self.reference.removeprefix("env:")
        text = os.environ.get(name)
        if text is None:
            raise ConfigError(f"the variable {name} is not set", "it holds a secret that the configuration refers to")
        return _clean(text, f"the variable {name}")

    def warning(self) -> str:
        """What is wrong with where it is, in a sentence; empty where nothing is. The secret itself is not read."""
        path = self.path
        if path is None:
            name = self.reference.removeprefix("env:")
            return "" if os.environ.get(name) else f"the variable {name} is not set here"
        try:
            found = path.stat()
        except OSError as fault:
            return f"{path} cannot be read here: {fault.strerror}"
        except ValueError:
            return "its path is not a path"
        if not stat.S_ISREG(found.st_mode):
            return f"{path} is not a regular file"
        if found.st_mode & stat.S_IROTH:
            return f"{path} can be read by every user of this host: chmod o-r"
        return "" if os.access(path, os.R_OK) else f"{path} cannot be read here: Permission denied"


def _from_file(path: Path) -> str:
    try:
        # Not to be kept waiting by a pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"secret file {path}: not a regular file")
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as fault:
        raise ConfigError(f"secret file {path}: {fault.strerror}", "it is named in the configuration") from None
    except ValueError:
        raise ConfigError("a secret's path is not a path") from None
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(f"secret file {path}: larger than {MAX_SECRET_BYTES >> 10} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"secret file {path}: not UTF-8") from None


def _clean(text: str, where: str) -> str:
    text = text.strip("\r\n")
    if not text.strip():
        raise ConfigError(f"the secret in {where} is empty")
    if any(char < " " or char == "\x7f" for char in text):  # it goes into headers: a line feed would begin another
        raise ConfigError(f"the secret in {where} holds control characters")
    return text
