"""Readers as an author writes them, for tests: the sandbox imports this module."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def upper(raw: bytes) -> str:
    return raw.decode().upper()


def from_path(path: str) -> str:
    return f"{Path(path).suffix} {Path(path).read_text()}"


def where(raw: bytes) -> str:
    return str(os.getpid())


def blocks(raw: bytes) -> list[Any]:
    return [
        "plain",
        {"type": "text", "text": raw.decode()},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a document"}},
    ]


def pdf(raw: bytes) -> dict[str, Any]:
    data = base64.b64encode(raw).decode()
    return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}


def fail(raw: bytes) -> str:
    raise ValueError(f"this text must not be shown: {raw.decode()}")


def nothing(raw: bytes) -> None:
    return None


def strange(raw: bytes) -> list[Any]:
    return [7]


def start_and_crash(raw: bytes) -> str:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(raw.decode()).write_text(str(child.pid))
    os.abort()


def hold(raw: bytes) -> str:
    """Read nothing until the file that the document names is there."""
    while not Path(raw.decode()).exists():
        time.sleep(0.01)
    return "held"
