-- The worker's journal, version 1. Times are milliseconds since 1970; ids are texts, for whoever reads it with sqlite3.

PRAGMA application_id = 1280265810; -- "LONR"
PRAGMA user_version = 1;

CREATE TABLE installation (
    only            INTEGER PRIMARY KEY CHECK (only = 1),
    installation_id TEXT NOT NULL,
    created_at_ms   INTEGER NOT NULL
);

-- Narrow on purpose: it is rewritten with every change of state. What is large stands in tables of its own.
CREATE TABLE runs (
    id             INTEGER PRIMARY KEY,
    job_id         TEXT NOT NULL,
    run            INTEGER NOT NULL,
    kind           TEXT NOT NULL,
    instance       TEXT NOT NULL,
    repository_id  TEXT NOT NULL,
    urgent         INTEGER NOT NULL,
    digest         BLOB NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'ended')),
    not_before_ms  INTEGER,
    held           INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    failures       INTEGER NOT NULL,
    crashes        INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    outcome        TEXT,
    ended_at_ms    INTEGER,
    pruned_at_ms   INTEGER,
    UNIQUE (job_id, run)
);
CREATE INDEX runs_open ON runs (id) WHERE state <> 'ended';
CREATE INDEX runs_ended ON runs (ended_at_ms) WHERE state = 'ended' AND pruned_at_ms IS NULL;
CREATE INDEX runs_pruned ON runs (pruned_at_ms) WHERE pruned_at_ms IS NOT NULL;

CREATE TABLE messages (
    run_id     INTEGER PRIMARY KEY,
    properties TEXT NOT NULL,
    body       BLOB NOT NULL
);

CREATE TABLE records (
    id      INTEGER PRIMARY KEY,
    run_id  INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    record  TEXT NOT NULL
);
CREATE INDEX records_of_run ON records (run_id, attempt);

-- Of a run; with the run id 0, which no run has, of the host itself.
CREATE TABLE kept (
    run_id INTEGER NOT NULL,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (run_id, name)
) WITHOUT ROWID;

CREATE TABLE tombstones (
    job_id   TEXT NOT NULL,
    run      INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    PRIMARY KEY (job_id, run)
) WITHOUT ROWID;

-- Sent state and final events stay until their run has ended, or is pruned, so that a duplicate can have its state announced again
-- by the same event.
CREATE TABLE outbox (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER,
    event_id    TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('final', 'letter', 'state', 'progress', 'host')),
    sent        INTEGER NOT NULL,
    exchange    TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    properties  TEXT NOT NULL,
    body        BLOB NOT NULL
);
CREATE INDEX outbox_unsent ON outbox (id) WHERE sent = 0;
CREATE INDEX outbox_of_run ON outbox (run_id) WHERE run_id IS NOT NULL;

-- What could not be removed from the host yet, whatever became of the run that left it.
CREATE TABLE left_overs (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
