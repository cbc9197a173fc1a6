"""Who is asked, for how long, as a DAG author states it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any


def require_people(assigned_users: Any, response_timeout: Any) -> None:
    """Raise ValueError, when the DAG is parsed, for users that are no list and a time that has no unit."""
    if isinstance(assigned_users, (str, Mapping)):  # letters and keys would be taken for users
        raise ValueError(f"assigned_users={assigned_users!r}: give a list, such as ['ada'].")
    if response_timeout is not None and not isinstance(response_timeout, dt.timedelta):
        raise ValueError(
            f"response_timeout={response_timeout!r}: give a timedelta, such as timedelta(hours=8)."
        )
