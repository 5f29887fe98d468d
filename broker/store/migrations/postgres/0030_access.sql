-- +goose Up
CREATE TABLE sites (
    id   TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- body is the whole app as JSON; the other columns hold what the database has to guard.
CREATE TABLE apps (
    id      TEXT PRIMARY KEY,
    idx     BIGINT NOT NULL UNIQUE,
    name    TEXT   NOT NULL UNIQUE,
    version BIGINT NOT NULL,
    body    TEXT   NOT NULL
);
CREATE TABLE app_names (
    name   TEXT PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE
);
CREATE TABLE app_sites (
    app_id  TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    site_id TEXT NOT NULL REFERENCES sites (id),
    PRIMARY KEY (app_id, site_id)
);
-- Indexes of deleted apps, until they are given again.
CREATE TABLE app_indexes (
    idx      BIGINT PRIMARY KEY,
    freed_at BIGINT NOT NULL
);
CREATE TABLE suffixes (
    id      BIGINT PRIMARY KEY,
    version BIGINT NOT NULL,
    list    TEXT   NOT NULL
);
INSERT INTO suffixes (id, version, list) VALUES (1, 1, '[]');
CREATE TABLE proposals (
    connector_id TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    site_id      TEXT   NOT NULL,
    protocol     TEXT   NOT NULL,
    target       TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    at           BIGINT NOT NULL,
    decided_at   BIGINT NOT NULL,
    PRIMARY KEY (connector_id, name)
);

-- Removed machines stay, so that their keys are never enrolled again.
CREATE TABLE devices (
    id         TEXT PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    os         TEXT    NOT NULL,
    hardware   BOOLEAN NOT NULL,
    state      TEXT    NOT NULL,
    key_id     TEXT    NOT NULL UNIQUE,
    spki       BYTEA   NOT NULL,
    serial     TEXT    NOT NULL,
    not_after  BIGINT  NOT NULL,
    first_seen BIGINT  NOT NULL,
    last_seen  BIGINT  NOT NULL,
    address    TEXT    NOT NULL,
    program    TEXT    NOT NULL
);
CREATE INDEX devices_user ON devices (user_id);
CREATE TABLE device_facts (
    device_id   TEXT PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    observed_at BIGINT NOT NULL,
    facts       TEXT   NOT NULL
);
CREATE TABLE connectors (
    id          TEXT PRIMARY KEY,
    site_id     TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    may_publish BOOLEAN NOT NULL,
    health      TEXT    NOT NULL,
    assignment  BIGINT  NOT NULL,
    applied     BIGINT  NOT NULL,
    state       TEXT    NOT NULL,
    key_id      TEXT    NOT NULL UNIQUE,
    spki        BYTEA   NOT NULL,
    serial      TEXT    NOT NULL,
    not_after   BIGINT  NOT NULL,
    first_seen  BIGINT  NOT NULL,
    last_seen   BIGINT  NOT NULL,
    address     TEXT    NOT NULL,
    program     TEXT    NOT NULL
);
CREATE INDEX connectors_site ON connectors (site_id);
CREATE TABLE relays (
    id         TEXT PRIMARY KEY,
    name       TEXT   NOT NULL,
    hpke       BYTEA  NOT NULL,
    tcp        TEXT   NOT NULL,
    udp        TEXT   NOT NULL,
    state      TEXT   NOT NULL,
    key_id     TEXT   NOT NULL UNIQUE,
    spki       BYTEA  NOT NULL,
    serial     TEXT   NOT NULL,
    not_after  BIGINT NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL,
    address    TEXT   NOT NULL,
    program    TEXT   NOT NULL
);

-- The secret of a token is not here: hash is its SHA-256, lookup the beginning of it.
CREATE TABLE join_tokens (
    id          TEXT PRIMARY KEY,
    lookup      TEXT    NOT NULL UNIQUE,
    hash        TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    site_id     TEXT    NOT NULL,
    label       TEXT    NOT NULL,
    multi       BOOLEAN NOT NULL,
    may_publish BOOLEAN NOT NULL,
    created_at  BIGINT  NOT NULL,
    expires_at  BIGINT  NOT NULL,
    revoked_at  BIGINT  NOT NULL,
    uses        BIGINT  NOT NULL,
    last_used   BIGINT  NOT NULL
);
CREATE TABLE join_token_uses (
    token_id TEXT   NOT NULL REFERENCES join_tokens (id) ON DELETE CASCADE,
    key_id   TEXT   NOT NULL,
    at       BIGINT NOT NULL,
    subject  TEXT   NOT NULL,
    PRIMARY KEY (token_id, key_id)
);

CREATE TABLE sessions (
    id            TEXT PRIMARY KEY,
    user_id       TEXT   NOT NULL,
    device_id     TEXT   NOT NULL,
    device_key    TEXT   NOT NULL,
    acr           TEXT   NOT NULL,
    amr           TEXT   NOT NULL,
    auth_time     BIGINT NOT NULL,
    created_at    BIGINT NOT NULL,
    last_verified BIGINT NOT NULL,
    last_active   BIGINT NOT NULL,
    max_age_ms    BIGINT NOT NULL,
    idle_ms       BIGINT NOT NULL,
    source        TEXT   NOT NULL,
    stale         TEXT   NOT NULL,
    ended_at      BIGINT NOT NULL,
    end_cause     TEXT   NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id, ended_at);
CREATE INDEX sessions_device ON sessions (device_id, ended_at);
CREATE INDEX sessions_ended ON sessions (ended_at);

-- body is the whole grant as JSON; the other columns are those by which it is revoked,
-- expired and found.
CREATE TABLE grants (
    id             TEXT PRIMARY KEY,
    receipt        TEXT   NOT NULL,
    session_id     TEXT   NOT NULL,
    user_id        TEXT   NOT NULL,
    device_key     TEXT   NOT NULL,
    app_id         TEXT   NOT NULL,
    issued_at      BIGINT NOT NULL,
    hard_end       BIGINT NOT NULL,
    re_evaluate_at BIGINT NOT NULL,
    state          TEXT   NOT NULL,
    revoked_by     BIGINT NOT NULL,
    ended_at       BIGINT NOT NULL,
    body           TEXT   NOT NULL
);
CREATE INDEX grants_state ON grants (state, hard_end);
CREATE INDEX grants_user ON grants (user_id, state);
CREATE INDEX grants_session ON grants (session_id, state);
CREATE INDEX grants_device ON grants (device_key, state);
CREATE INDEX grants_app ON grants (app_id, state);
CREATE INDEX grants_receipt ON grants (receipt);

CREATE TABLE revocations (
    sequence   BIGINT PRIMARY KEY,
    kind       BIGINT NOT NULL,
    target     TEXT   NOT NULL,
    cause      TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    keep_until BIGINT NOT NULL,
    connectors TEXT   NOT NULL
);
CREATE INDEX revocations_keep ON revocations (keep_until);
-- One row: the highest sequence ever, which outlives the revocations.
CREATE TABLE revocation_counter (
    id   BIGINT PRIMARY KEY,
    last BIGINT NOT NULL
);
INSERT INTO revocation_counter (id, last) VALUES (1, 0);

CREATE TABLE assignments (
    connector_id TEXT PRIMARY KEY,
    version      BIGINT NOT NULL,
    digest       TEXT   NOT NULL
);
