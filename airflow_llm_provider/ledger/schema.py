"""The ledger's tables, their version and the migrations that lead to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from airflow_llm_provider.errors import LedgerUnusable

metadata = sa.MetaData()

# State of an attempt. `settled` and `late` are paid and answered; `unproven` may have been paid and is
# booked at its ceiling; `failed` was provably not billed; `reopened` is paid, answered and to be asked anew.
OPEN, SETTLED, LATE, FAILED, UNPROVEN, REOPENED = "open", "settled", "late", "failed", "unproven", "reopened"
PAID = (SETTLED, LATE, REOPENED)

call = sa.Table(
    "call",  # one row an attempt: one request sent once
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("claim", sa.String(64), nullable=False),  # the fingerprint within the scope of its reuse
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("holder", sa.String(32), nullable=False),  # the engine that renews the lease
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("purpose", sa.String(20), nullable=False),
    sa.Column("parent", sa.String(32)),  # the attempt whose reply this one repairs
    sa.Column("item_id", sa.Text),
    sa.Column("connection_id", sa.Text, nullable=False),
    sa.Column("dag_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("try_number", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("tags", sa.Text),  # a JSON list
    sa.Column("trace_id", sa.String(32), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("ceiling_micro_usd", sa.BigInteger),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("closed_ms", sa.BigInteger),
    sa.Column("latency_ms", sa.Integer),
    sa.Column("stop_reason", sa.Text),
    sa.Column("uncached_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("cache_read_tokens", sa.BigInteger),
    sa.Column("cache_write_5m_tokens", sa.BigInteger),
    sa.Column("cache_write_1h_tokens", sa.BigInteger),
    sa.Column("cost_micro_usd", sa.BigInteger),  # NULL when the price is unknown or nothing was billed
    sa.Column("error_class", sa.Text),
    sa.Column("error", sa.Text),
    # Ids of the accounts it is booked on, separated by spaces; NULL for none. See ledger.accounts.
    sa.Column("accounts", sa.Text),
    sa.Column("version", sa.Text),  # the author's label in the request
    sa.Column(
        "family", sa.String(16)
    ),  # what the calls of one task and schema share; NULL where nobody estimates
    sa.Column("ceiling_tokens", sa.BigInteger),  # the most input tokens it could have
)


def is_in(*states: str) -> sa.ColumnElement[bool]:
    """Test an attempt's state, written out: with a bound parameter SQLite would not see a partial index fit."""
    return call.c.state.in_([sa.literal_column(f"'{state}'") for state in states])


IS_OPEN, IS_LIVE, IS_ANSWERED = is_in(OPEN), is_in(OPEN, SETTLED), is_in(SETTLED, LATE)
IS_PAID = is_in(*PAID)
# The claim itself: at most one live or settled attempt a key, held by the database.
sa.Index("call_claim", call.c.claim, unique=True, sqlite_where=IS_LIVE, postgresql_where=IS_LIVE)
sa.Index("call_answered", call.c.fingerprint, sqlite_where=IS_ANSWERED, postgresql_where=IS_ANSWERED)
sa.Index("call_run", call.c.dag_id, call.c.run_id)
sa.Index("call_open", call.c.holder, sqlite_where=IS_OPEN, postgresql_where=IS_OPEN)
# The newest calls of a family: what the next ones will take is estimated from them.
IS_OF_FAMILY = call.c.family.is_not(None)
call_family = sa.Index(
    "call_family", call.c.family, call.c.opened_ms, sqlite_where=IS_OF_FAMILY, postgresql_where=IS_OF_FAMILY
)

payload = sa.Table(
    "payload",  # what was said; apart from `call`, so that looking up and adding up stay cheap
    metadata,
    sa.Column("call_id", sa.String(32), primary_key=True),
    sa.Column("prompt", sa.LargeBinary),  # zlib-compressed request body, by the payload policy
    sa.Column("reply", sa.LargeBinary),  # the API's reply as received: needed to answer a retry
)

document = sa.Table(
    "document",  # what an unchanged document was asked, so that it need not be read to be recognised
    metadata,
    sa.Column("sighting", sa.String(64), primary_key=True),  # hash of question, place and stamp
    sa.Column("fingerprint", sa.String(64), nullable=False),
)

review = sa.Table(
    "review",  # what a person was shown, and what was decided
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # hash of task instance and key: see ledger.reviews
    sa.Column("dag_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("first_try", sa.Integer, nullable=False),  # of the going of the task: a clear begins another
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("asked_hash", sa.String(64), nullable=False),  # of all that must not change while it is asked
    sa.Column("shown", sa.LargeBinary),  # zlib-compressed JSON: the form; NULL when nobody was asked
    sa.Column("shown_hash", sa.String(64)),
    sa.Column("content", sa.LargeBinary, nullable=False),  # zlib-compressed JSON: what is decided on
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("choice", sa.Text),  # the option taken
    sa.Column("decided", sa.LargeBinary),  # zlib-compressed JSON: what goes on, or an edit that may not
    sa.Column("decided_hash", sa.String(64)),
    sa.Column("decided_by", sa.Text),
    sa.Column("feedback", sa.Text),
    sa.Column("why", sa.Text),  # why a person was asked, or was not
    sa.Column("shown_ms", sa.BigInteger, nullable=False),
    sa.Column("decided_ms", sa.BigInteger),
)
sa.Index("review_run", review.c.dag_id, review.c.run_id)

effect = sa.Table(
    "effect",  # a tool call: what may happen once, and what a replay must find as it was
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # hash of task instance and call: see ledger.effects
    sa.Column("dag_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("try_number", sa.Integer, nullable=False),
    sa.Column("call_id", sa.String(32)),  # the attempt whose reply asked for it
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("is_irreversible", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("holder", sa.String(32), nullable=False),  # who makes it, and renews the lease meanwhile
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("input", sa.LargeBinary, nullable=False),  # zlib-compressed JSON
    sa.Column("output", sa.LargeBinary),
    sa.Column("began_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
)
sa.Index("effect_run", effect.c.dag_id, effect.c.run_id)

budget = sa.Table(
    "budget",  # a standing cap; see ledger.budgets.Budget, whose fields these are
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("cap_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("scope", sa.String(10), nullable=False),
    sa.Column("applies_to", sa.Text, nullable=False),
    sa.Column("per", sa.String(10), nullable=False),
    sa.Column("timezone", sa.Text, nullable=False),
    sa.Column("on_exceeded", sa.String(10), nullable=False),
)

account = sa.Table(
    "account",  # what a meter has counted: the sum over the calls that name it; see ledger.accounts
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),  # of ledger.budgets.Meter
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # scope, period and time zone: what such meters share
    sa.Column("applies_to", sa.Text, nullable=False),  # the DAG or connection
    sa.Column("settled_micro_usd", sa.BigInteger, nullable=False),  # paid, or booked as unproven
    sa.Column("reserved_micro_usd", sa.BigInteger, nullable=False),  # ceilings of what is in flight
    sa.Column("warned_micro_usd", sa.BigInteger, nullable=False),  # up to where warnings were given
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
)

saving = sa.Table(
    "saving",  # what one try of a task did not have to pay; see ledger.records.Saving
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("dag_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("try_number", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("tags", sa.Text),  # a JSON list
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("reused", sa.BigInteger, nullable=False),  # answers that were in the ledger
    sa.Column("reused_micro_usd", sa.BigInteger, nullable=False),  # what they had cost
    sa.Column(
        "routed_micro_usd", sa.BigInteger, nullable=False
    ),  # about what the last model alone costs more
)

rate_limit = sa.Table(
    "rate_limit",  # the limiter: when the next call of a bucket may go; see ledger.rate_limits
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # Where each limit's timeline ends: what was permitted so far takes the account until then.
    sa.Column("requests_free_ms", sa.Double, nullable=False, default=0.0),
    sa.Column("input_free_ms", sa.Double, nullable=False, default=0.0),
    sa.Column("output_free_ms", sa.Double, nullable=False, default=0.0),
    sa.Column("quiet_until_ms", sa.Double, nullable=False, default=0.0),  # as a Retry-After asked
    sa.Column("rpm", sa.BigInteger),  # what the API's headers said of the limits, and when
    sa.Column("itpm", sa.BigInteger),
    sa.Column("otpm", sa.BigInteger),
    sa.Column("learnt_ms", sa.Double, nullable=False, default=0.0),
    sa.Column(
        "cut_rpm", sa.Double, nullable=False, default=0.0
    ),  # what the last 429 made of the pace, and when
    sa.Column("cut_ms", sa.Double, nullable=False, default=0.0),
    sa.Column(
        "waiting", sa.Text, nullable=False
    ),  # JSON: by DAG, each process that waits, and until when it counts
)

version = sa.Table("ledger_version", metadata, sa.Column("version", sa.Integer, primary_key=True))


def _create_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


def _add_budgets(connection: sa.Connection) -> None:
    _create_tables(connection)
    columns = {column["name"] for column in sa.inspect(connection).get_columns(call.name)}
    if call.c.accounts.name not in columns:  # a ledger that is made now has it from the first step on
        connection.execute(sa.text('ALTER TABLE "call" ADD COLUMN accounts TEXT'))


def _add_reports(connection: sa.Connection) -> None:
    _create_tables(connection)
    known = {column["name"] for column in sa.inspect(connection).get_columns(call.name)}
    for name, kind in (("version", "TEXT"), ("family", "VARCHAR(16)"), ("ceiling_tokens", "BIGINT")):
        if name not in known:
            connection.execute(sa.text(f"ALTER TABLE call ADD COLUMN {name} {kind}"))
    call_family.create(connection, checkfirst=True)


Migration = Callable[[sa.Connection], None]
# Forward only: append, never edit. The ledger's version is how many have run.
MIGRATIONS: tuple[Migration, ...] = (
    _create_tables,
    _create_tables,  # adds review and effect
    _add_budgets,
    _add_reports,
    _create_tables,  # adds permit
)


class LedgerTooNew(LedgerUnusable):
    """The ledger was written by a newer airflow-provider-llm: upgrade this installation."""


def current_version(connection: sa.Connection) -> int:
    """Return the ledger's version, 0 where there is none yet.

    Raises LedgerUnusable where other tables have the names of its own: what is there would pass for them.
    """
    inspector = sa.inspect(connection)
    if inspector.has_table(version.name):
        return connection.scalar(sa.select(sa.func.max(version.c.version))) or 0
    taken = sorted(name for name in metadata.tables if inspector.has_table(name))
    if taken:
        raise LedgerUnusable(
            f"The database {connection.engine.url.database} holds other tables by names of the ledger's own "
            f"({', '.join(taken)}). Point [llm] ledger_url at another file or database."
        )
    return 0


def migrate(connection: sa.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the ledger to this code's version, within the caller's transaction.

    Many processes may do so at once: the first creates the tables, the others wait for it.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('airflow_llm_provider.ledger'))"))
    current = current_version(connection)
    if current > len(migrations):
        raise LedgerTooNew(
            f"The ledger has schema version {current}, this airflow-provider-llm knows up to {len(migrations)}. "
            "Upgrade the package on this machine, or point [llm] ledger_url at another ledger."
        )
    if not current:
        version.create(connection, checkfirst=True)
    for number, step in enumerate(migrations[current:], start=current + 1):
        step(connection)
        connection.execute(version.insert().values(version=number))
