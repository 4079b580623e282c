"""Maps FILE executable and, as soon as another opens it, harms it: hostile_mapper.py FILE truncate | swap VICTIM.

Prints `ready` when the file is mapped. `swap` puts a link to VICTIM at the file's path and the file back, over and over.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

path, how = Path(sys.argv[1]), sys.argv[2]
link, own = path.with_suffix(".link"), path.with_suffix(".own")
with path.open("r+b") as file:
    mapping = mmap.mmap(file.fileno(), 65536, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_EXEC)
print("ready", flush=True)
deadline = time.monotonic() + 60
size = path.stat().st_size
while time.monotonic() < deadline:
    if how == "truncate":
        os.truncate(path, 8192)
        time.sleep(0.0005)
        os.truncate(path, size)
    else:
        link.symlink_to(sys.argv[3])
        path.rename(own)
        link.rename(path)
        time.sleep(0.0005)
        own.rename(path)
    time.sleep(0.0005)
