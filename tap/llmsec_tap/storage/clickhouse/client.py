"""A connection to the first node that answers, and the server's errors as one line that says what to do."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmsec_tap.errors import ConfigError, LLMSecError, StorageError
from llmsec_tap.storage.clickhouse.address import PASSWORD_VARIABLE, Address, Node

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Read only by the server: it refuses whatever writes, and refuses that the statement takes the setting back.
READ_ONLY: Final = {"readonly": 2}
_EXTRA: Final = "pip install 'llmsec-trace[clickhouse]'"
_CODE: Final = re.compile(r"\(?code:?\s*(\d+)\)?", re.IGNORECASE)
_AFTER_MESSAGE: Final = re.compile(
    r"(?:\s*\([A-Z_]+\))?(?:\s*\(version [^)]*\))?(?:\s*\([A-Z_]+\))?\s*$|\(for url .*$|\s*server response:.*$", re.DOTALL
)

# src/Common/ErrorCodes.cpp
_REFUSED: Final = frozenset({192, 193, 194, 516})  # unknown user, wrong password, required password, authentication failed
_NO_RIGHT: Final = frozenset({164, 497})  # readonly, access denied
_NO_DATABASE: Final = frozenset({81})
_NO_TABLE: Final = frozenset({60})
_STATEMENT: Final = frozenset({36, 41, 42, 43, 46, 47, 53, 62, 70, 115, 179, 181, 184, 215, 352, 386, 403, 452, 456, 457, 691})
_LATER: Final = frozenset(
    # timeout, too many queries, socket timeout, network error, memory, too many parts, not enough space, table read only,
    # Keeper, aborted, quota, timeout of distributed DDL, no active replicas, shutting down
    {159, 202, 209, 210, 241, 243, 252, 242, 225, 999, 236, 201, 285, 319, 289, 394, 473, 745}
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Seconds until a connection, and a statement, count as failed."""

    connect_s: float = 10.0
    query_s: float = 60.0


DEFAULT_LIMITS: Final = Limits()


def connect(
    address: Address, limits: Limits = DEFAULT_LIMITS, settings: Mapping[str, Any] | None = None, *, database: bool = True
) -> tuple[Client, Node]:
    """The first node that answers. StorageError where none does, ConfigError where one refuses the user. `database`: it must be there."""
    try:
        import clickhouse_connect  # noqa: PLC0415
    except ImportError:
        raise ConfigError("a ClickHouse store needs the library clickhouse-connect", _EXTRA) from None
    # It writes tracebacks with the statement in them, and what is wrong is said here in one line.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL + 1)
    reasons: list[str] = []
    for node in address.nodes:
        try:
            client: Client = clickhouse_connect.get_client(
                host=node.host,
                port=node.port,
                interface="https" if node.secure else "http",
                username=address.username,
                password=address.password,
                database=address.database if database else None,
                connect_timeout=max(1, round(limits.connect_s)),
                send_receive_timeout=max(1, round(limits.query_s)),
                query_retries=0,
                autogenerate_session_id=False,
                client_name="llmsec-trace",
                show_clickhouse_errors="scrub",
                settings={"max_execution_time": max(1, round(limits.query_s)), **(settings or {})},
            )
        except Exception as fault:  # noqa: BLE001 - what a server that is none answers raises whatever its parsing meets
            found = server_error(fault, str(node))
            if not (isinstance(found, StorageError) and found.retryable):
                raise found from None
            reasons.append(str(found))
        else:
            return client, node
    raise StorageError("; ".join(reasons), "is it running, and is that its HTTP port (8123, with TLS 8443)?", retryable=True)


@contextmanager
def translated(where: str, translate: Callable[[Exception, str], LLMSecError] | None = None) -> Iterator[None]:
    """Around every call of the library: whatever it raises, and it raises what its parsing of any answer meets, becomes one line."""
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - see above
        raise (translate or server_error)(fault, where) from None


def code_of(fault: BaseException) -> int | None:
    """ClickHouse's number of what went wrong; None where no server said one."""
    code = getattr(fault, "code", None)
    if isinstance(code, int):
        return code
    found = _CODE.search(str(fault))
    return int(found[1]) if found else None


def message_of(fault: BaseException) -> str:
    """The server's sentence, without where it was said and by which version; one line, bounded."""
    text = str(fault).strip()
    text = text.rpartition("DB::Exception: ")[2]
    while (shorter := _AFTER_MESSAGE.sub("", text).strip().rstrip(".")) != text:
        text = shorter
    line = " ".join(text.partition(" Expected one of:")[0].replace("FORMAT Native", "").split())
    return (line[:300] + "…") if len(line) > 300 else line or type(fault).__name__


def server_error(fault: BaseException, where: str) -> LLMSecError:
    """What to raise for it. `retryable` StorageError: it may work later, or at another node."""
    if isinstance(fault, LLMSecError):
        return fault
    code = code_of(fault)
    message = message_of(fault)
    if code in _REFUSED:
        return ConfigError(
            f"{where} refuses the user: {message}", f"the password is read from {PASSWORD_VARIABLE} or storage.clickhouse.password"
        )
    if code in _NO_DATABASE:
        return StorageError(f"{where}: {message}", "llmsec-analyze db migrate makes it")
    if code in _NO_RIGHT:
        return StorageError(f"{where}: {message}", "the user may not do this: a read-only user, or a read-only session")
    if code in _LATER or code is None:
        return StorageError(f"{where}: {_plain(fault, message)}", "try again later", retryable=True)
    return StorageError(f"{where}: {message}", f"ClickHouse's error {code}")


def _plain(fault: BaseException, message: str) -> str:
    """The reason of a failed connection, which is at the end of a chain of wrapped ones."""
    reason = message
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror.lower()
        elif isinstance(cause, TimeoutError) or "timed out" in str(cause):
            reason = "no answer in time"
        cause = cause.__cause__ or cause.__context__
    return reason


def statement_error(fault: BaseException, where: str) -> LLMSecError:
    """As `server_error`, for a statement of a user's: what is wrong with it is theirs to mend."""
    code = code_of(fault)
    message = message_of(fault)
    if code in _NO_RIGHT:
        return ConfigError(message, "a query reads the store's views only")
    if code in _NO_TABLE:
        return ConfigError(
            message, "tables: exchanges, messages, tool_calls, anomalies, findings, taps; llmsec-analyze db migrate makes them"
        )
    if code in _STATEMENT:
        return ConfigError(message, "this is ClickHouse's SQL; DESCRIBE exchanges lists the columns")
    return server_error(fault, where)
