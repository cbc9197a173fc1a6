-- Version 1 of the ledger's schema. Frozen: a change is a new file, see __init__.py.

-- one row per attempt: one request that was sent once
CREATE TABLE "call" (
    id VARCHAR(32) NOT NULL,
    fingerprint VARCHAR(64) NOT NULL,
    claim VARCHAR(64) NOT NULL,
    state VARCHAR(10) NOT NULL,
    holder VARCHAR(32) NOT NULL,
    lease_until_ms BIGINT NOT NULL,
    purpose VARCHAR(20) NOT NULL,
    parent VARCHAR(32),
    item_id TEXT,
    connection_id TEXT NOT NULL,
    dag_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    map_index INTEGER NOT NULL,
    try_number INTEGER NOT NULL,
    owner TEXT,
    tags TEXT,
    trace_id VARCHAR(32) NOT NULL,
    model TEXT NOT NULL,
    ceiling_micro_usd BIGINT,
    opened_ms BIGINT NOT NULL,
    closed_ms BIGINT,
    latency_ms INTEGER,
    stop_reason TEXT,
    uncached_tokens BIGINT,
    output_tokens BIGINT,
    cache_read_tokens BIGINT,
    cache_write_5m_tokens BIGINT,
    cache_write_1h_tokens BIGINT,
    cost_micro_usd BIGINT,
    error_class TEXT,
    error TEXT,
    accounts TEXT,
    version TEXT,
    family VARCHAR(16),
    ceiling_tokens BIGINT,
    PRIMARY KEY (id)
);
CREATE INDEX call_answered ON "call" (fingerprint) WHERE state IN ('settled', 'late');
CREATE UNIQUE INDEX call_claim ON "call" (claim) WHERE state IN ('open', 'settled');
CREATE INDEX call_family ON "call" (family, opened_ms) WHERE family IS NOT NULL;
CREATE INDEX call_open ON "call" (holder) WHERE state IN ('open');
CREATE INDEX call_run ON "call" (dag_id, run_id);

-- request and reply of a call: a table of its own, so that lookups and sums stay cheap
CREATE TABLE payload (
    call_id VARCHAR(32) NOT NULL,
    prompt BYTEA,
    reply BYTEA,
    PRIMARY KEY (call_id)
);

-- the request that an unchanged document led to, so that it need not be read again
CREATE TABLE document (
    sighting VARCHAR(64) NOT NULL,
    fingerprint VARCHAR(64) NOT NULL,
    PRIMARY KEY (sighting)
);

-- what a person was shown, and what was decided
CREATE TABLE review (
    id VARCHAR(64) NOT NULL,
    dag_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    map_index INTEGER NOT NULL,
    first_try INTEGER NOT NULL,
    status VARCHAR(10) NOT NULL,
    asked_hash VARCHAR(64) NOT NULL,
    shown BYTEA,
    shown_hash VARCHAR(64),
    content BYTEA NOT NULL,
    content_hash VARCHAR(64) NOT NULL,
    choice TEXT,
    decided BYTEA,
    decided_hash VARCHAR(64),
    decided_by TEXT,
    feedback TEXT,
    why TEXT,
    shown_ms BIGINT NOT NULL,
    decided_ms BIGINT,
    PRIMARY KEY (id)
);
CREATE INDEX review_run ON review (dag_id, run_id);

-- one row per tool call: an irreversible one must not be repeated, the others may be
CREATE TABLE effect (
    id VARCHAR(64) NOT NULL,
    dag_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    map_index INTEGER NOT NULL,
    try_number INTEGER NOT NULL,
    call_id VARCHAR(32),
    tool TEXT NOT NULL,
    is_irreversible BOOLEAN NOT NULL,
    state VARCHAR(10) NOT NULL,
    holder VARCHAR(32) NOT NULL,
    lease_until_ms BIGINT NOT NULL,
    input BYTEA NOT NULL,
    output BYTEA,
    began_ms BIGINT NOT NULL,
    ended_ms BIGINT,
    PRIMARY KEY (id)
);
CREATE INDEX effect_run ON effect (dag_id, run_id);

-- one row per stored budget: the fields of ledger.budgets.Budget
CREATE TABLE budget (
    name VARCHAR(100) NOT NULL,
    cap_micro_usd BIGINT NOT NULL,
    scope VARCHAR(10) NOT NULL,
    applies_to TEXT NOT NULL,
    per VARCHAR(10) NOT NULL,
    timezone TEXT NOT NULL,
    on_exceeded VARCHAR(10) NOT NULL,
    PRIMARY KEY (name)
);

-- one row per meter: the sum over the calls that name it
CREATE TABLE account (
    id VARCHAR(16) NOT NULL,
    label TEXT NOT NULL,
    kind TEXT NOT NULL,
    applies_to TEXT NOT NULL,
    settled_micro_usd BIGINT NOT NULL,
    unproven_micro_usd BIGINT NOT NULL,
    reserved_micro_usd BIGINT NOT NULL,
    warned_micro_usd BIGINT NOT NULL,
    opened_ms BIGINT NOT NULL,
    PRIMARY KEY (id)
);

-- one row per task try: what it did not have to pay
CREATE TABLE saving (
    id VARCHAR(32) NOT NULL,
    dag_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    map_index INTEGER NOT NULL,
    try_number INTEGER NOT NULL,
    connection_id TEXT NOT NULL,
    owner TEXT,
    tags TEXT,
    model TEXT NOT NULL,
    version TEXT,
    at_ms BIGINT NOT NULL,
    reused BIGINT NOT NULL,
    reused_micro_usd BIGINT NOT NULL,
    routed_micro_usd BIGINT NOT NULL,
    PRIMARY KEY (id)
);

-- what a day has cost, one row per DAG, owner, tags, model and connection; it outlives the calls
CREATE TABLE daily (
    id VARCHAR(32) NOT NULL,
    day INTEGER NOT NULL,
    is_pruned BOOLEAN NOT NULL,
    dag_id TEXT NOT NULL,
    owner TEXT,
    tags TEXT,
    model TEXT NOT NULL,
    connection_id TEXT NOT NULL,
    calls BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    unproven BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    uncached_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    cost_micro_usd BIGINT NOT NULL,
    unproven_micro_usd BIGINT NOT NULL,
    reused BIGINT NOT NULL,
    reused_micro_usd BIGINT NOT NULL,
    routed_micro_usd BIGINT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX daily_day ON daily (day);

-- one row per bucket: when its next call may be sent
CREATE TABLE rate_limit (
    name TEXT NOT NULL,
    requests_free_ms DOUBLE PRECISION NOT NULL,
    input_free_ms DOUBLE PRECISION NOT NULL,
    output_free_ms DOUBLE PRECISION NOT NULL,
    quiet_until_ms DOUBLE PRECISION NOT NULL,
    rpm BIGINT,
    itpm BIGINT,
    otpm BIGINT,
    learnt_ms DOUBLE PRECISION NOT NULL,
    cut_rpm DOUBLE PRECISION NOT NULL,
    cut_ms DOUBLE PRECISION NOT NULL,
    same_cuts INTEGER NOT NULL,
    written_ms DOUBLE PRECISION NOT NULL,
    waiting TEXT NOT NULL,
    PRIMARY KEY (name)
);

-- one row per migration that was applied
CREATE TABLE ledger_schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);
