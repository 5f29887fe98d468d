-- +goose Up
-- line is the record, byte for byte as it was hashed; the other columns repeat parts of it
-- for searching, and verification compares them.
CREATE TABLE audit_records (
    writer  TEXT   NOT NULL,
    seq     BIGINT NOT NULL,
    at      BIGINT NOT NULL,
    kind    TEXT   NOT NULL,
    user_id TEXT   NOT NULL,
    device  TEXT   NOT NULL,
    session TEXT   NOT NULL,
    app     TEXT   NOT NULL,
    receipt TEXT   NOT NULL,
    line    TEXT   NOT NULL,
    hash    TEXT   NOT NULL,
    PRIMARY KEY (writer, seq)
);
CREATE INDEX audit_records_at ON audit_records (at, writer, seq);
CREATE INDEX audit_records_user ON audit_records (user_id, at);
CREATE INDEX audit_records_device ON audit_records (device, at);
CREATE INDEX audit_records_app ON audit_records (app, at);
CREATE INDEX audit_records_receipt ON audit_records (receipt);

CREATE TABLE audit_heads (
    writer TEXT PRIMARY KEY,
    seq    BIGINT NOT NULL,
    hash   TEXT   NOT NULL
);

CREATE TABLE audit_segments (
    writer    TEXT    NOT NULL,
    first_seq BIGINT  NOT NULL,
    last_seq  BIGINT  NOT NULL,
    head      TEXT    NOT NULL,
    signed    TEXT    NOT NULL,
    dropped   BOOLEAN NOT NULL,
    signed_at BIGINT  NOT NULL,
    PRIMARY KEY (writer, first_seq)
);

CREATE TABLE audit_person_keys (
    id         TEXT PRIMARY KEY,
    user_id    TEXT   NOT NULL,
    sealed     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX audit_person_keys_user ON audit_person_keys (user_id, created_at);
