"""ClickHouse as the store of many hosts: tables and views made of the same schema as a folder's parts (docs/formats/clickhouse.md).

The client library is an extra (`pip install 'llmsec-trace[clickhouse]'`) and imported only when a server is asked.
"""
