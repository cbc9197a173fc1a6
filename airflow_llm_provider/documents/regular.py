"""Regular files: what was listed as one and has become a link, pipe or device is not opened."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file for reading, unbuffered by whoever swaps it; raises OSError for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", path)
    return open(descriptor, "rb")
