"""Whether there is a terminal to draw on, and with what rights the drawing goes on."""

from __future__ import annotations

import os

from llmsec_tap import privileges
from llmsec_tap.errors import ConfigError

_INSTEAD = "llmsec-analyze exchanges and llmsec-tap capture print lines anywhere"


def check_terminal(*, takes_input: bool) -> None:
    """Raises ConfigError. `takes_input`: standard input carries events, and keys come from the terminal itself."""
    for descriptor, name in ((0, "standard input"), (1, "standard output"), (2, "standard error")):
        if not (descriptor == 0 and takes_input) and not os.isatty(descriptor):
            raise ConfigError(f"the live view needs a terminal, and {name} is none", _INSTEAD)
    kind = os.environ.get("TERM", "")
    if kind in ("", "dumb", "unknown"):
        raise ConfigError(f"the live view cannot draw on a terminal of the kind {kind!r}", f"set TERM, for example to xterm; {_INSTEAD}")


def events_from_input() -> int:
    """The descriptor of what was standard input, which becomes the terminal's keys. Raises ConfigError."""
    if os.isatty(0):
        raise ConfigError("`-` reads events, and standard input is a terminal", "pipe `llmsec-tap capture --format events` into it")
    try:
        keys = os.open("/dev/tty", os.O_RDWR)
    except OSError as fault:
        raise ConfigError(f"there is no terminal for keys: /dev/tty: {fault.strerror}", _INSTEAD) from None
    events = os.dup(0)
    os.dup2(keys, 0)
    os.close(keys)
    return events


def give_up_rights() -> None:
    """What draws what strangers wrote needs none. A user who could not read this program keeps root's name, without capabilities but to read."""
    user = privileges.unprivileged_user()
    if user is not None and privileges.may_read_programs(user):
        privileges.become(user)
    else:
        privileges.limit_capabilities(("CAP_DAC_READ_SEARCH",) if user is not None else ())
