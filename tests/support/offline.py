"""A network that has only loopback, for the processes that a test starts."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_NETWORK = 0x4000_0000  # CLONE_NEWNET
_SET_FLAGS, _UP = 0x8914, 0x1  # SIOCSIFFLAGS, IFF_UP


@contextmanager
def offline() -> Iterator[bool]:
    """Leave only loopback to this thread, and to the threads and processes that it starts meanwhile.

    They reach each other on loopback. What runs already keeps its network. Yields False where it is not possible: it
    needs Linux, and root or `unshare -r`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        yield False
        return
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_NEW_NETWORK):
            yield False
            return
        try:
            _bring_up_loopback()
            yield True
        finally:
            if libc.setns(before, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "the earlier network could not be restored")
    finally:
        os.close(before)


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh22x", b"lo", _UP))
