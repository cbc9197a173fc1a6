"""Migrations: frozen SQL files, one per version and dialect, that create the ledger's tables and upgrade them.

`0002.sqlite.sql` leads from version 1 to version 2. A released file is never edited. A change of the schema is a
new pair of files, the same change in `ledger.schema`, a higher LATEST_VERSION, and a dump of a ledger of the new
version in tests/unit/ledgers (its README.md says how).

A file is cut into statements at each `;` that ends a line, so no comment and no text in it may end a line so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

import sqlalchemy as sa

from airflow_llm_provider.errors import LedgerUnusable
from airflow_llm_provider.ledger.schema import metadata, schema_version

LATEST_VERSION = 1
_BEFORE_RELEASE = "ledger_version"  # the table that held the version in ledgers of unreleased code


class LedgerTooNew(LedgerUnusable):
    """The ledger was written by a newer airflow-provider-llm: upgrade this installation."""


def migrations(dialect: str) -> list[str]:
    """Read the SQL of each version in order.

    Args:
        dialect: `sqlite` or `postgresql`.
    """
    folder = resources.files(__name__)
    return [
        (folder / f"{version:04}.{dialect}.sql").read_text(encoding="utf-8")
        for version in range(1, LATEST_VERSION + 1)
    ]


def current_version(connection: sa.Connection) -> int | None:
    """Return the version of the ledger's schema; None in a database without a ledger.

    Raises:
        LedgerUnusable: The ledger is older than the first release, or other tables have the names of the ledger's.
    """
    found = set(sa.inspect(connection).get_table_names())
    if schema_version.name in found:
        version: int | None = connection.scalar(sa.select(sa.func.max(schema_version.c.version)))
        return version
    database = connection.engine.url.database
    if _BEFORE_RELEASE in found:
        raise LedgerUnusable(
            f"The ledger {database} was made by airflow-provider-llm before its first release and can't be upgraded. "
            "It was left as it is. Point [llm] ledger_url at a new file or database: the replies in the old one "
            "are not reused, so they are paid for again."
        )
    if taken := sorted(found & set(metadata.tables)):
        raise LedgerUnusable(
            f"The database {database} holds other tables with the names of the ledger's own ({', '.join(taken)}). "
            "Nothing was changed. Point [llm] ledger_url at another file or database."
        )
    return None


def migrate(connection: sa.Connection, steps: Sequence[str] | None = None) -> None:
    """Bring the ledger to the version of this code, within the caller's write transaction.

    Many processes may call it at the same time: the first one creates the tables, the others wait for it.

    Args:
        connection: In a write transaction; the caller commits it.
        steps: The SQL of each version in order; by default the files of this package.

    Raises:
        LedgerTooNew: The ledger's version is higher than the last step.
        LedgerUnusable: The database holds something else.
    """
    if connection.dialect.name == "postgresql":
        # Held until the transaction ends. On SQLite the write transaction itself is the lock.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('airflow_llm_provider.ledger'))"))
    current = current_version(connection) or 0
    latest = LATEST_VERSION if steps is None else len(steps)
    if current > latest:
        raise LedgerTooNew(
            f"The ledger has schema version {current}, this airflow-provider-llm knows versions up to {latest}. "
            "Nothing was changed and nothing was sent. Upgrade the package on this machine, or point "
            "[llm] ledger_url at another ledger."
        )
    if current == latest:
        return
    for version, sql in enumerate(steps or migrations(connection.dialect.name), start=1):
        if version > current:
            for statement in statements(sql):
                connection.exec_driver_sql(statement)
            connection.execute(schema_version.insert().values(version=version))


def statements(sql: str) -> list[str]:
    """Cut the text of a migration into its statements, without the comments."""
    code = re.sub(r"^\s*--.*\n?", "", sql, flags=re.MULTILINE)
    return [part.strip() for part in re.split(r";\s*(?:\n|\Z)", code) if part.strip()]
