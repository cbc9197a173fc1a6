"""The ledger's tables and the states of their rows, for SQLAlchemy's statements.

The tables themselves are created by the SQL files in `ledger.migrations`. A test holds that both are the same.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# State of an attempt.
OPEN = "open"  # claimed, perhaps sent; leased to an engine
SETTLED = "settled"  # paid and answered
LATE = "late"  # paid and answered, but after its lease had ended
FAILED = "failed"  # provably not billed
UNPROVEN = "unproven"  # may have been billed: it is booked at its ceiling
REOPENED = "reopened"  # paid and answered, and not to be reused: the request is sent again
PAID = (SETTLED, LATE, REOPENED)

call = sa.Table(
    "call",  # one row per attempt: one request that was sent once
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),  # begins with the time: see records.new_id
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("claim", sa.String(64), nullable=False),  # the fingerprint within the scope of its reuse
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("holder", sa.String(32), nullable=False),  # the engine that renews the lease
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),  # by the database's clock
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
    sa.Column("ceiling_micro_usd", sa.BigInteger),  # the most it can cost; NULL when the price is unknown
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
    sa.Column("accounts", sa.Text),  # ids of the accounts it is booked on, separated by spaces; NULL for none
    sa.Column("version", sa.Text),  # the author's label in the request
    sa.Column("family", sa.String(16)),  # shared by the calls of one task and schema; NULL without estimates
    sa.Column("ceiling_tokens", sa.BigInteger),  # the most input tokens it can have
)


def is_in(*states: str) -> sa.ColumnElement[bool]:
    """Test the state of an attempt, with the states as literals.

    With bound parameters SQLite would not see that a partial index fits.
    """
    return call.c.state.in_([sa.literal_column(f"'{state}'") for state in states])


IS_OPEN, IS_LIVE, IS_ANSWERED = is_in(OPEN), is_in(OPEN, SETTLED), is_in(SETTLED, LATE)
IS_PAID = is_in(*PAID)
HAS_FAMILY = call.c.family.is_not(None)


def _index(
    name: str, *columns: sa.Column[str] | sa.Column[int], where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


# The claim itself: the database holds that a key has at most one attempt that is open or settled.
_index("call_claim", call.c.claim, where=IS_LIVE, unique=True)
_index("call_answered", call.c.fingerprint, where=IS_ANSWERED)
_index("call_open", call.c.holder, where=IS_OPEN)  # small: lease renewal reads nothing else
_index("call_family", call.c.family, call.c.opened_ms, where=HAS_FAMILY)  # the newest calls, for estimates
sa.Index("call_run", call.c.dag_id, call.c.run_id)

payload = sa.Table(
    "payload",  # request and reply of a call; a table of its own, so that lookups and sums stay cheap
    metadata,
    sa.Column("call_id", sa.String(32), primary_key=True),
    sa.Column("prompt", sa.LargeBinary),  # zlib-compressed request body, if the payload policy keeps it
    sa.Column("reply", sa.LargeBinary),  # the API's reply as received: a retry is answered from it
)

document = sa.Table(
    "document",  # the request that an unchanged document led to, so that it need not be read again
    metadata,
    sa.Column("sighting", sa.String(64), primary_key=True),  # hash of prompt, path and modification stamp
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
    sa.Column("first_try", sa.Integer, nullable=False),  # the first try since the task was last cleared
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("asked_hash", sa.String(64), nullable=False),  # of all that must not change while it is open
    sa.Column("shown", sa.LargeBinary),  # zlib-compressed JSON: the form; NULL when nobody was asked
    sa.Column("shown_hash", sa.String(64)),
    sa.Column("content", sa.LargeBinary, nullable=False),  # zlib-compressed JSON: what is decided on
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("choice", sa.Text),  # the option taken
    sa.Column("decided", sa.LargeBinary),  # zlib-compressed JSON: the approved content, or an invalid edit
    sa.Column("decided_hash", sa.String(64)),
    sa.Column("decided_by", sa.Text),
    sa.Column("feedback", sa.Text),
    sa.Column("why", sa.Text),  # why a person was asked, or was not
    sa.Column("shown_ms", sa.BigInteger, nullable=False),  # 0 until Airflow shows it
    sa.Column("decided_ms", sa.BigInteger),
)
sa.Index("review_run", review.c.dag_id, review.c.run_id)

effect = sa.Table(
    "effect",  # one row per tool call: an irreversible one must not be repeated, the others may be
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
    sa.Column("holder", sa.String(32), nullable=False),  # who makes the call and renews the lease meanwhile
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.Column("input", sa.LargeBinary, nullable=False),  # zlib-compressed JSON
    sa.Column("output", sa.LargeBinary),  # zlib-compressed JSON; NULL until it has ended
    sa.Column("began_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
)
sa.Index("effect_run", effect.c.dag_id, effect.c.run_id)

budget = sa.Table(
    "budget",  # one row per stored budget: the fields of ledger.budgets.Budget
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
    "account",  # one row per meter: the sum over the calls that name it; see ledger.accounts
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),  # of ledger.budgets.Meter
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # scope, period and time zone, which such meters share
    sa.Column("applies_to", sa.Text, nullable=False),  # the DAG or connection
    sa.Column("settled_micro_usd", sa.BigInteger, nullable=False),  # paid, or booked as unproven
    sa.Column("unproven_micro_usd", sa.BigInteger, nullable=False),  # the part of it that is unproven
    sa.Column("reserved_micro_usd", sa.BigInteger, nullable=False),  # ceilings of what is in flight
    sa.Column("warned_micro_usd", sa.BigInteger, nullable=False),  # warnings were given up to this sum
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
)

saving = sa.Table(
    "saving",  # one row per task try: what it did not have to pay; see ledger.records.Saving
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),  # begins with the time, like a call's
    sa.Column("dag_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("try_number", sa.Integer, nullable=False),
    sa.Column("connection_id", sa.Text, nullable=False),
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

daily = sa.Table(
    "daily",  # what a day has cost, one row per DAG, owner, tags, model and connection; see ledger.daily
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),  # hash of the next seven columns
    sa.Column("day", sa.Integer, nullable=False),  # days since 1970-01-01, UTC
    sa.Column("is_pruned", sa.Boolean, nullable=False),  # whether the calls that it adds up were removed
    sa.Column("dag_id", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("tags", sa.Text),  # a JSON list
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("connection_id", sa.Text, nullable=False),
    # The sums have the names of the fields of ledger.reports.Costs.
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("unproven", sa.BigInteger, nullable=False),
    sa.Column("unpriced", sa.BigInteger, nullable=False),
    sa.Column("uncached_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_read_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_5m_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_1h_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("unproven_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("reused", sa.BigInteger, nullable=False),
    sa.Column("reused_micro_usd", sa.BigInteger, nullable=False),
    sa.Column("routed_micro_usd", sa.BigInteger, nullable=False),
)
sa.Index("daily_day", daily.c.day)

rate_limit = sa.Table(
    "rate_limit",  # one row per bucket: when its next call may be sent; see ledger.rate_limits
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # Where the timeline of each limit ends: the calls permitted so far use the limit until then.
    sa.Column("requests_free_ms", sa.Double, nullable=False, default=0.0),
    sa.Column("input_free_ms", sa.Double, nullable=False, default=0.0),
    sa.Column("output_free_ms", sa.Double, nullable=False, default=0.0),
    sa.Column("quiet_until_ms", sa.Double, nullable=False, default=0.0),  # as a Retry-After asked
    sa.Column("rpm", sa.BigInteger),  # the limits per minute that the API's headers stated
    sa.Column("itpm", sa.BigInteger),
    sa.Column("otpm", sa.BigInteger),
    sa.Column("learnt_ms", sa.Double, nullable=False, default=0.0),  # when they did
    sa.Column("cut_rpm", sa.Double, nullable=False, default=0.0),  # requests per minute after the last 429
    sa.Column("cut_ms", sa.Double, nullable=False, default=0.0),  # when that was
    sa.Column("same_cuts", sa.Integer, nullable=False, default=0),  # in a row to nearly the same rate
    sa.Column("written_ms", sa.Double, nullable=False, default=0.0),  # when the row was last written
    sa.Column("waiting", sa.Text, nullable=False),  # JSON: DAG -> process -> until when it counts as waiting
)

schema_version = sa.Table(
    "ledger_schema_version",  # one row per migration that was applied
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
)
