-- +goose Up
-- What connectors signed over the records that they shipped; signed is the envelope of
-- proto/chain SignedHead, byte for byte.
CREATE TABLE audit_connector_heads (
    writer      TEXT   NOT NULL,
    first_seq   BIGINT NOT NULL,
    last_seq    BIGINT NOT NULL,
    signed      TEXT   NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (writer, last_seq)
);
