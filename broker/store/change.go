package store

import (
	"context"
	"fmt"
	"time"
)

// Version names a state of the database: a restore opens a new epoch, each change takes the
// next sequence.
type Version struct {
	Epoch uint64
	Seq   uint64
}

// Change says that the thing named key of kind topic is not what it was.
type Change struct {
	Seq   uint64
	Topic string
	Key   string
}

// Change appends a change event and returns its sequence. The counter's row stays locked
// until the transaction ends, so sequences become visible in their order. Watchers wake
// after the commit.
func (tx *Tx) Change(ctx context.Context, topic, key string) (uint64, error) {
	seq, err := scanRow(ctx, tx, scanOne[uint64], `UPDATE change_counter SET seq = seq + 1 WHERE id = 1 RETURNING seq`)
	if err != nil {
		return 0, fmt.Errorf("take change sequence: %w", err)
	}
	_, err = tx.exec(ctx, `INSERT INTO changes (seq, topic, key, at) VALUES ($1, $2, $3, $4)`,
		seq, topic, key, unixMilli(time.Now()))
	if err != nil {
		return 0, fmt.Errorf("append change: %w", err)
	}
	tx.seq = seq
	return seq, nil
}

// Version returns the newest committed version.
func (s *Store) Version(ctx context.Context) (Version, error) {
	v, err := scanRow(ctx, s.read(ctx), func(row scanner) (v Version, err error) {
		return v, row.Scan(&v.Epoch, &v.Seq)
	}, `SELECT epoch, seq FROM change_counter WHERE id = 1`)
	if err != nil {
		return Version{}, fmt.Errorf("read version: %w", err)
	}
	return v, nil
}

// NewEpoch opens the next restore epoch: every watcher and every peer reads everything again.
func (s *Store) NewEpoch(ctx context.Context) (Version, error) {
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.execOne(ctx, `UPDATE change_counter SET epoch = epoch + 1 WHERE id = 1`); err != nil {
			return err
		}
		_, err := tx.Change(ctx, "epoch", "")
		return err
	})
	if err != nil {
		return Version{}, fmt.Errorf("open restore epoch: %w", err)
	}
	return s.Version(ctx)
}

// PruneChanges forgets change events older than before; a watcher that still needs one is
// told to read everything. It returns how many went.
func (s *Store) PruneChanges(ctx context.Context, before time.Time) (n int64, err error) {
	err = s.write(ctx, func(tx *Tx) error {
		n, err = tx.exec(ctx, `DELETE FROM changes WHERE at < $1`, unixMilli(before))
		return err
	})
	return n, err
}
