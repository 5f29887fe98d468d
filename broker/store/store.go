// Package store keeps all durable state of the broker in SQLite (one machine) or PostgreSQL
// (many brokers). It is used by the leaves of the broker through the small interfaces that
// they declare themselves; it holds no business rules, and SQL stands nowhere else.
//
// Both engines run the same query texts: $n placeholders, the SQL that the two share, JSON
// as TEXT, times as BIGINT unix milliseconds. Only the DDL in migrations/ exists twice.
//
// A Store is safe for concurrent use. Writing transactions run one after the other, in the
// whole installation and not only in this process (SQLite: the one writer; PostgreSQL: the
// table lock of change_counter), so a transaction may read, decide and write without races,
// and the order of the change sequence is the order of the commits.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

const (
	// rereadEvery is how often a watcher is told to read everything again, as a net below
	// the change events.
	rereadEvery = 30 * time.Second
	// lockWait is long for a transaction and short for a person.
	lockWait = 5 * time.Second
)

// Config says which database to open. Log is required.
type Config struct {
	// DSN is "sqlite:/path/file.db" or "postgres://...". The SQLite file is created with
	// mode 0600 when it does not exist.
	DSN string
	// Version is the version of this program; it is recorded beside the schema, so that an
	// older program can name it when it refuses. Empty means "unknown".
	Version string
	// RereadEvery is the longest time between two full re-reads of a watcher. Zero means 30 s.
	RereadEvery time.Duration
	// LockWait is the longest wait for a lock of another process. Zero means 5 s.
	LockWait time.Duration
	Log      *slog.Logger
}

// Store is an open database with the schema of this program.
type Store struct {
	cfg    Config
	log    *slog.Logger
	engine engine
	writer *sql.DB // SQLite: exactly one connection
	reader *sql.DB // PostgreSQL: the same pool as writer
	wake   *broadcast
}

// engine is what differs between the two databases apart from the DDL.
type engine interface {
	name() string
	open(ctx context.Context) (writer, reader *sql.DB, err error)
	// snapshot saves the database before a migration; it returns the path, or "" where the
	// operator's own backup has to do.
	snapshot(ctx context.Context, db *sql.DB, from, to int64) (string, error)
	// begin runs first in each writing transaction and takes the writers' lock.
	begin(ctx context.Context, tx *sql.Tx) error
	// announce runs last in a writing transaction that has changes.
	announce(ctx context.Context, tx *sql.Tx, seq uint64) error
	// listen calls wake for changes that other processes commit, until ctx ends.
	listen(ctx context.Context, wake func()) error
	// classify returns the sentinel of this package for a driver's error, or nil.
	classify(err error) error
	// beginSnapshot begins a reading transaction that sees one moment of the database.
	beginSnapshot(ctx context.Context, db *sql.DB) (*sql.Tx, error)
	// tablesQuery lists the names of all tables; referencesQuery those that table $1 refers to.
	tablesQuery() string
	referencesQuery() string
	// retryable reports whether the same transaction may succeed when it runs again.
	retryable(err error) bool
}

// Open opens the database, creates it if there is none, and brings the schema up to date.
// It refuses a schema newer than this program (ErrNewerSchema). Close the store after use.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(s.openError(err), s.Close())
	}
	return s, nil
}

// connect opens the pools and leaves the schema alone.
func connect(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		return nil, errors.New("store: Config.Log is required")
	}
	if cfg.RereadEvery == 0 {
		cfg.RereadEvery = rereadEvery
	}
	if cfg.LockWait == 0 {
		cfg.LockWait = lockWait
	}
	eng, err := engineOf(cfg.DSN, cfg.LockWait)
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, engine: eng, wake: newBroadcast(), log: cfg.Log.With("component", "store")}
	if s.writer, s.reader, err = eng.open(ctx); err != nil {
		return nil, s.openError(err)
	}
	return s, nil
}

// prepare checks that the database can be used and migrates it.
func (s *Store) prepare(ctx context.Context) error {
	if err := s.writer.PingContext(ctx); err != nil {
		return err
	}
	return s.migrate(ctx)
}

// Close ends all connections. It is safe to call twice.
func (s *Store) Close() error {
	return errors.Join(s.writer.Close(), s.reader.Close())
}

// Ping reports whether the database answers; the readiness page shows its error.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return s.mapError(s.reader.QueryRowContext(ctx, `SELECT 1`).Scan(&one))
}

// Engine returns "sqlite" or "postgres".
func (s *Store) Engine() string { return s.engine.name() }

// engineOf chooses the engine by the scheme of the DSN. The DSN may hold a password: it does
// not appear in errors.
func engineOf(dsn string, wait time.Duration) (engine, error) {
	if path, ok := strings.CutPrefix(dsn, "sqlite:"); ok {
		return newSQLite(path, wait)
	}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return newPostgres(dsn, wait)
	}
	scheme, _, _ := strings.Cut(dsn, ":")
	return nil, fmt.Errorf("store: unknown database kind %q: write sqlite:/path/file.db or postgres://host/name", scheme)
}
