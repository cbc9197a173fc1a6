"""What is looked up in the ledger: many questions with a few statements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from airflow_llm_provider.ledger import sql
from airflow_llm_provider.ledger.records import Answer, CallScope, Reuse


@dataclass(frozen=True, slots=True)
class Lookup:
    """Asks for the answer to a fingerprint, or to what a sighting was asked, that may be reused here."""

    key: str
    by: Literal["fingerprint", "sighting"]
    scope: CallScope
    reuse: Reuse


def look_up(connection: sa.Connection, batch: Sequence[Lookup]) -> list[Answer | None]:
    """Return the answer to each lookup, or None."""
    found: list[Answer | None] = [None] * len(batch)
    # All lookups of one task share scope and reuse, so this is one group, seldom two. By identity: comparing
    # the scopes of ten thousand lookups takes as long as finding the answers.
    groups: dict[tuple[int, Reuse], list[int]] = {}
    for index, lookup in enumerate(batch):
        groups.setdefault((id(lookup.scope), lookup.reuse), []).append(index)
    for (_, reuse), indexes in groups.items():
        scope = batch[indexes[0]].scope
        sightings = [batch[i].key for i in indexes if batch[i].by == "sighting"]
        sighted = _sighted(connection, sightings)
        asked = {i: sighted.get(batch[i].key) if batch[i].by == "sighting" else batch[i].key for i in indexes}
        fingerprints = list({fingerprint for fingerprint in asked.values() if fingerprint})
        answers = _answers(connection, scope, reuse, fingerprints)
        for index, fingerprint in asked.items():
            found[index] = answers.get(fingerprint or "")
    return found


def newest(rows: Sequence[Any], key: str = "fingerprint") -> dict[str, Answer]:
    """Return the newest answer for each fingerprint, or claim."""
    best: dict[str, Any] = {}
    for row in rows:
        known = best.get(name := getattr(row, key))
        if known is None or known.closed_ms <= row.closed_ms:
            best[name] = row
    return {name: Answer(*row[:5]) for name, row in best.items()}


def chunks(keys: Sequence[str], size: int = 512) -> Iterator[Sequence[str]]:
    """Cut `keys` into pieces that fit below the 999 variables of old SQLite builds, and are as fast as more."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _sighted(connection: sa.Connection, sightings: Sequence[str]) -> dict[str, str]:
    return {
        row.sighting: row.fingerprint
        for chunk in chunks(sightings)
        for row in connection.execute(sql.SIGHTED, {"sightings": chunk})
    }


def _answers(
    connection: sa.Connection, scope: CallScope, reuse: Reuse, fingerprints: Sequence[str]
) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    size = 256 if reuse == "never" else 512  # `never` sends two variables a fingerprint
    for chunk in chunks(fingerprints, size):
        parameters: dict[str, Any] = {"fingerprints": chunk}
        if reuse == "run":
            parameters |= {"dag": scope.dag_id, "run": scope.run_id}
        elif reuse == "never":
            parameters |= {"claims": [scope.claim(fingerprint, reuse) for fingerprint in chunk]}
        answers |= newest(connection.execute(sql.ANSWERED[reuse], parameters).all())
    return answers
