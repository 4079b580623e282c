"""What the configuration says of ClickHouse, as the storage library takes it."""

from __future__ import annotations

from dataclasses import dataclass

from llmsec_agent.config.schema import ClickHouse
from llmsec_tap.errors import ConfigError
from llmsec_tap.storage.clickhouse.address import Address, is_clickhouse, nodes, parse
from llmsec_tap.storage.clickhouse.client import Limits
from llmsec_tap.storage.clickhouse.tables import Keep, Layout


@dataclass(frozen=True)
class Database:
    """One database, and how it is asked and made."""

    address: Address
    limits: Limits
    layout: Layout


def database_of(settings: ClickHouse | None, location: str | None, *, option: str = "--store") -> Database:
    """The database at `location`, else the configured one; of the configuration the rest holds in either case. Raises ConfigError.

    `option`: the one by which the caller would have been given a location.
    """
    if location is not None and not is_clickhouse(location):
        raise ConfigError(f"{location} is not a ClickHouse store", "give clickhouse://user@host/database")
    if location is not None:
        address = parse(location)
    elif settings is not None:
        address = Address(
            nodes(settings.nodes), settings.database, settings.username, settings.password.read() if settings.password is not None else ""
        )
    else:
        raise ConfigError(
            "no ClickHouse store named", f"give {option} clickhouse://user@host/database, or storage.clickhouse in the configuration"
        )
    if settings is None:
        return Database(address, Limits(), Layout(address.database))
    keep = Keep(settings.ttl.metadata_days, settings.ttl.content_days, settings.ttl.findings_days)
    return Database(address, Limits(settings.connection_timeout, settings.query_timeout), Layout(address.database, settings.cluster, keep))
