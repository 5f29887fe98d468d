-- +goose Up
CREATE TABLE users (
    id                TEXT PRIMARY KEY,
    issuer            TEXT   NOT NULL,
    subject           TEXT   NOT NULL,
    login             TEXT   NOT NULL,
    name              TEXT   NOT NULL,
    mail              TEXT   NOT NULL,
    disabled          BIGINT NOT NULL,
    admin             TEXT   NOT NULL,
    identity          TEXT   NOT NULL,
    verified_at       BIGINT NOT NULL,
    attributes        TEXT   NOT NULL,
    groups_incomplete BIGINT NOT NULL,
    created_at        BIGINT NOT NULL,
    updated_at        BIGINT NOT NULL,
    UNIQUE (issuer, subject)
);
CREATE UNIQUE INDEX users_local_login ON users (login) WHERE issuer = 'local';
CREATE INDEX users_issuer_login ON users (issuer, login);
CREATE INDEX users_admin ON users (admin);

CREATE TABLE user_groups (
    id     TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    name   TEXT NOT NULL,
    UNIQUE (source, name)
);

CREATE TABLE group_members (
    group_id TEXT NOT NULL REFERENCES user_groups (id) ON DELETE CASCADE,
    user_id  TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX group_members_user ON group_members (user_id);

-- Passwords, one-time codes, sign-ins under way and refresh tokens; keys that are bearer
-- texts are hashed before they get here.
CREATE TABLE identity_records (
    kind       TEXT   NOT NULL,
    key        TEXT   NOT NULL,
    alt        TEXT,
    user_id    TEXT   NOT NULL,
    family     TEXT   NOT NULL,
    data       TEXT   NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (kind, key)
);
CREATE UNIQUE INDEX identity_records_alt ON identity_records (kind, alt);
CREATE INDEX identity_records_user ON identity_records (user_id);
CREATE INDEX identity_records_expires ON identity_records (expires_at);

CREATE TABLE identity_issuers (
    id            TEXT PRIMARY KEY,
    name          TEXT   NOT NULL,
    url           TEXT   NOT NULL UNIQUE,
    client_id     TEXT   NOT NULL,
    sealed_secret TEXT   NOT NULL,
    scopes        TEXT   NOT NULL,
    claims        TEXT   NOT NULL,
    created_at    BIGINT NOT NULL
);
