"""The package is typed, and a DAG author's type checker profits from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_dag_is_checked_and_its_mistakes_are_found() -> None:
    # An ignore that is not needed is an error: so the mistakes in the file are held to be mistakes.
    api = Path(__file__).with_name("api.py")
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--config-file=", str(api)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
