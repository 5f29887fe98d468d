package store

import (
	"context"
	"fmt"
)

// Meta returns the value that is stored under key, or ErrNotFound. Meta holds single facts
// of the installation (its id, its name), not lists.
func (s *Store) Meta(ctx context.Context, key string) (string, error) {
	v, err := scanRow(ctx, s.read(ctx), scanOne[string], `SELECT value FROM meta WHERE key = $1`, key)
	if err != nil {
		return "", fmt.Errorf("read meta %s: %w", key, err)
	}
	return v, nil
}

// SetMeta stores value under key.
func (s *Store) SetMeta(ctx context.Context, key, value string) error {
	return s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO meta (key, value) VALUES ($1, $2)
			ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
		if err != nil {
			return fmt.Errorf("write meta %s: %w", key, err)
		}
		return nil
	})
}

// MetaOnce stores value under key if nothing is there, and returns what is there now: the
// first of several brokers decides.
func (s *Store) MetaOnce(ctx context.Context, key, value string) (current string, err error) {
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING`, key, value)
		if err != nil {
			return fmt.Errorf("write meta %s: %w", key, err)
		}
		current, err = s.Meta(tx.Context(ctx), key)
		return err
	})
	return current, err
}
