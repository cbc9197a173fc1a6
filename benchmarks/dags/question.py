"""What every side is asked, and over which documents: the same for all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import pydantic

MODEL = "claude-haiku-5-5"
IN_FLIGHT = int(os.environ.get("BENCHMARK_IN_FLIGHT", "256"))  # calls at once in one task
PROMPT = "Read this delivery note and state its facts. Leave out what it does not say."
# A task of any side is tried four times; what needs no second try has none.
DEFAULT_ARGS = {"retries": 3, "retry_delay": timedelta(seconds=5)}


class Delivery(pydantic.BaseModel):
    """The facts of a delivery note."""

    vendor: str = pydantic.Field(description="who delivers")
    total: float = pydantic.Field(description="amount to pay")
    due: date | None = None
    kind: Literal["invoice", "delivery note", "contract", "other"]
    court: str = pydantic.Field(description="the courts for a dispute")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One DAG's work: the documents of a folder, or so many single questions."""

    dag_id: str
    folder: str
    questions: int = 0

    @property
    def files(self) -> list[Path]:
        """Return the documents, in the order of their names."""
        return sorted(Path(self.folder).iterdir())

    @property
    def prompts(self) -> list[str]:
        """Return the single questions, no two alike."""
        return [f"{self.dag_id} {n}: what is owed for {n} boxes at $3 each?" for n in range(self.questions)]


def works() -> list[Work]:
    """Return what this side is to do: one DAG each."""
    return [Work(**work) for work in json.loads(os.environ["BENCHMARK_WORKS"])]
