"""What every test process starts with: one thread a library, and files in memory."""

import os
import shutil
from pathlib import Path

#: Several files are tested at a time. Threads that wait for a core busily, as OpenMP's do, would
#: take it from another file's tests. It must be set before numpy or torch are imported.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

#: A run of all tests leaves less; a container's own /dev/shm has 64 MB.
_ROOM_BYTES = 4 * 2**30
_MEMORY = Path("/dev/shm")

# Banks and journals are flushed to the disk; in memory that costs nothing.
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
