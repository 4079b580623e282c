"""Where exchanges are kept: a folder of Parquet parts with SQL views over them (docs/formats/store.md).

Takes finished records only: imports `model`, and no room that decodes or captures.
"""

from llmsec_tap.storage.store import DEFAULT_STORE, Store, create_store, open_store
from llmsec_tap.storage.writer import StoreWriter, WriterStats

__all__ = ["DEFAULT_STORE", "Store", "StoreWriter", "WriterStats", "create_store", "open_store"]
