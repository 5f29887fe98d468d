-- +goose Up
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- One row: the restore epoch and the sequence of the last change. Its lock is the commit order.
CREATE TABLE change_counter (
    id    BIGINT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    seq   BIGINT NOT NULL
);
INSERT INTO change_counter (id, epoch, seq) VALUES (1, 1, 0);

CREATE TABLE changes (
    seq   BIGINT PRIMARY KEY,
    topic TEXT   NOT NULL,
    key   TEXT   NOT NULL,
    at    BIGINT NOT NULL
);
CREATE INDEX changes_at ON changes (at);

CREATE TABLE brokers (
    id         TEXT PRIMARY KEY,
    name       TEXT   NOT NULL,
    version    TEXT   NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL
);
