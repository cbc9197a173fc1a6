"""Who is asked, for how long, as a DAG author states it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

_OF_APPROVAL = ("response_timeout", "assigned_users", "notifiers")


def require_approval(approval: Mapping[str, Any]) -> None:
    """Raise ValueError, when the DAG is parsed, for an option of `approval=` that does not exist or can't be meant."""
    if unknown := sorted(set(approval) - set(_OF_APPROVAL)):
        raise ValueError(f"approval= knows no {unknown[0]!r}; there are {', '.join(_OF_APPROVAL)}.")
    require_people(approval.get("assigned_users"), approval.get("response_timeout"))


def terms(approval: Mapping[str, Any]) -> dict[str, Any]:
    """Return who is asked and for how long, as a Review takes them: notifiers are told by `park`."""
    return {name: value for name, value in approval.items() if name != "notifiers"}


def require_people(assigned_users: Any, response_timeout: Any) -> None:
    """Raise ValueError, when the DAG is parsed, for users that are no list and a time that has no unit."""
    if isinstance(assigned_users, (str, Mapping)):  # letters and keys would be taken for users
        raise ValueError(f"assigned_users={assigned_users!r}: give a list, such as ['ada'].")
    if response_timeout is not None and not isinstance(response_timeout, dt.timedelta):
        raise ValueError(
            f"response_timeout={response_timeout!r}: give a timedelta, such as timedelta(hours=8)."
        )
