"""The real files beside the checkout, which a test skips without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """Return a folder of real files, such as `cuad`; skip the test where there is none.

    `SHARED_DATA` names another place than beside the checkout.
    """
    folder = Path(os.environ.get("SHARED_DATA", _BESIDE)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the shared folder is not beside the checkout")
    return folder
