package store

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// maxAttempts bounds the runs of one transaction: with the writers' lock a second run is
	// rare, a fifth means that something else is wrong.
	maxAttempts = 5
	// retryStep is the longest pause before the second run; it grows with each run.
	retryStep = 20 * time.Millisecond
)

// queryer is what reading needs; a transaction and a pool both have it.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	// mapError puts the sentinel of this package in front of a driver's error.
	mapError(err error) error
}

// Tx is a writing transaction. It belongs to the function that received it and must not be
// used by two goroutines or after that function returned. After any error the function
// returns the error: PostgreSQL accepts nothing more in such a transaction.
type Tx struct {
	store *Store
	sql   *sql.Tx
	seq   uint64 // last change of this transaction, 0 without one
}

type txKey struct{}

// Context returns ctx joined to the transaction: methods of the store that get it read and
// write inside the transaction. It is valid as long as tx is.
func (tx *Tx) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, txKey{}, tx)
}

// joined returns the transaction of this store that ctx carries, or nil.
func (s *Store) joined(ctx context.Context) *Tx {
	tx, ok := ctx.Value(txKey{}).(*Tx)
	if !ok || tx.store != s {
		return nil
	}
	return tx
}

// read returns what queries run on: the transaction in ctx, else the read pool.
func (s *Store) read(ctx context.Context) queryer {
	if tx := s.joined(ctx); tx != nil {
		return tx
	}
	return pool{s.reader, s}
}

// InTx runs fn in one writing transaction, which spans the methods that are called with
// tx.Context(ctx). Calling a writing method with another context inside fn waits for ever on
// the writers' lock, so do not. fn may run more than once: it must not have other effects.
func (s *Store) InTx(ctx context.Context, fn func(tx *Tx) error) error {
	return s.write(ctx, fn)
}

// write runs fn in the transaction that ctx carries, or in a new one, which it commits when
// fn returns nil. Watchers wake after the commit.
func (s *Store) write(ctx context.Context, fn func(tx *Tx) error) error {
	if tx := s.joined(ctx); tx != nil {
		return fn(tx)
	}
	for attempt := 1; ; attempt++ {
		err := s.writeOnce(ctx, fn)
		if err == nil || attempt == maxAttempts || !s.engine.retryable(err) {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}

func (s *Store) writeOnce(ctx context.Context, fn func(tx *Tx) error) error {
	raw, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", s.mapError(err))
	}
	defer func() { _ = raw.Rollback() }() // after Commit it does nothing
	if err := s.engine.begin(ctx, raw); err != nil {
		return fmt.Errorf("begin: %w", s.mapError(err))
	}
	tx := &Tx{store: s, sql: raw}
	if err := fn(tx); err != nil {
		return err
	}
	return s.commit(ctx, tx)
}

func (s *Store) commit(ctx context.Context, tx *Tx) error {
	if tx.seq != 0 {
		if err := s.engine.announce(ctx, tx.sql, tx.seq); err != nil {
			return fmt.Errorf("announce: %w", s.mapError(err))
		}
	}
	if err := tx.sql.Commit(); err != nil {
		return fmt.Errorf("commit: %w", s.mapError(err))
	}
	if tx.seq != 0 {
		s.wake.all()
	}
	return nil
}

// pause waits a random time that grows with attempt.
func pause(ctx context.Context, attempt int) error {
	timer := time.NewTimer(rand.N(retryStep) * time.Duration(attempt))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// QueryContext runs a query inside the transaction.
func (tx *Tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return tx.sql.QueryContext(ctx, query, args...)
}

// QueryRowContext runs a query for one row inside the transaction.
func (tx *Tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return tx.sql.QueryRowContext(ctx, query, args...)
}

// exec runs a statement and returns how many rows it touched.
func (tx *Tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := tx.sql.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, tx.store.mapError(err)
	}
	n, err := res.RowsAffected()
	return n, tx.store.mapError(err)
}

// execOne runs a statement that must touch a row, else it returns ErrNotFound.
func (tx *Tx) execOne(ctx context.Context, query string, args ...any) error {
	n, err := tx.exec(ctx, query, args...)
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return err
}

// pool reads outside of transactions.
type pool struct {
	*sql.DB
	store *Store
}

func (p pool) mapError(err error) error { return p.store.mapError(err) }

func (tx *Tx) mapError(err error) error { return tx.store.mapError(err) }
