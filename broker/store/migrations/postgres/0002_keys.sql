-- +goose Up
-- Private keys, each sealed with the key-encryption key named in kek_id. owner is a broker's
-- id, or '' for keys of the whole installation.
CREATE TABLE sealed_keys (
    purpose    TEXT   NOT NULL,
    owner      TEXT   NOT NULL,
    serial     BIGINT NOT NULL,
    kek_id     TEXT   NOT NULL,
    public     TEXT   NOT NULL,
    sealed     TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (purpose, owner, serial)
);
