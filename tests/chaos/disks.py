"""Small disks that fill up or turn read-only: tmpfs, which only root may mount."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from airflow_llm_provider.testing.processes import wait_until

_FILLER = ".filler"


class Disk:
    """A tmpfs of `size_mb` at `path`, as long as the context lasts; a plain folder where we may not mount one.

    can_fail: whether it is a disk of its own; else `fill` and `set_read_only` must be left alone.
    """

    def __init__(self, name: str, *, size_mb: int) -> None:
        # Not among pytest's folders: what is mounted there, another session of pytest trips over.
        self.path = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
        self.can_fail = False
        self._size_mb = size_mb

    def __enter__(self) -> Disk:
        self.can_fail = _mount("-t", "tmpfs", "-o", f"size={self._size_mb}m", "tmpfs", self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self.can_fail:
            subprocess.run(["umount", "--lazy", self.path], check=False)
        shutil.rmtree(self.path, ignore_errors=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / _FILLER).open("wb", buffering=0) as filler:
            for size in (1 << 20, 4096, 1):
                try:
                    while filler.write(bytes(size)) == size:
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def set_read_only(self) -> bool:
        """Make it read-only, waiting a while for files that are being written; tell whether it is."""
        return wait_until(lambda: _mount("-o", "remount,ro", self.path), 5.0)

    def mend(self) -> None:
        """Make it writable again, and free what `fill` took."""
        if self.can_fail:
            _mount("-o", f"remount,rw,size={self._size_mb}m", self.path)
            with suppress(FileNotFoundError):
                (self.path / _FILLER).unlink()


def _mount(*arguments: str | Path) -> bool:
    return os.geteuid() == 0 and not subprocess.run(["mount", *arguments], capture_output=True).returncode
