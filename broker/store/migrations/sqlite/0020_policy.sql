-- +goose Up
-- The rules as admins edit them, and beside them everything else of the document (schedules,
-- attributes, baseline, trust table). Nothing of it decides before it is published.
CREATE TABLE policy_rules (
    id         TEXT PRIMARY KEY,
    name       TEXT   NOT NULL,
    rule       TEXT   NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX policy_rules_name ON policy_rules (name, id);

CREATE TABLE policy_settings (
    id         BIGINT PRIMARY KEY,
    settings   TEXT   NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Published revisions never change. document is the text that hash covers.
CREATE TABLE policy_revisions (
    id           TEXT PRIMARY KEY,
    number       BIGINT NOT NULL UNIQUE,
    hash         TEXT   NOT NULL,
    published_at BIGINT NOT NULL,
    published_by TEXT   NOT NULL,
    comment      TEXT   NOT NULL,
    document     TEXT   NOT NULL
);

-- Decisions by receipt. input is the canonical input, byte for byte; seq is the order of
-- arrival, for paging.
CREATE TABLE decisions (
    receipt  TEXT PRIMARY KEY,
    seq      BIGINT NOT NULL UNIQUE,
    at       BIGINT NOT NULL,
    user_id  TEXT   NOT NULL,
    device   TEXT   NOT NULL,
    session  TEXT   NOT NULL,
    app      TEXT   NOT NULL,
    verdict  TEXT   NOT NULL,
    revision TEXT   NOT NULL,
    input    TEXT   NOT NULL,
    decision TEXT   NOT NULL,
    remedies TEXT   NOT NULL
);
CREATE INDEX decisions_at ON decisions (at);
CREATE INDEX decisions_user ON decisions (user_id, seq);
CREATE INDEX decisions_device ON decisions (device, seq);
CREATE INDEX decisions_session ON decisions (session, seq);
CREATE INDEX decisions_app ON decisions (app, seq);
