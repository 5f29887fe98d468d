package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	engineSQLite = "sqlite"
	// maxReaders is the size of the read pool; each costs a page cache of about 2 MB.
	maxReaders = 8
)

// sqliteEngine is a database file. WAL lets readers go on while the one writer writes;
// synchronous=FULL makes a commit durable, which the audit relies on.
type sqliteEngine struct {
	path string
	wait time.Duration
}

func newSQLite(path string, wait time.Duration) (engine, error) {
	if path == "" {
		return nil, errors.New("store: sqlite: needs a file path, like sqlite:/var/lib/postern/broker/broker.db")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return &sqliteEngine{path: abs, wait: wait}, nil
}

func (e *sqliteEngine) name() string { return engineSQLite }

// dsn builds the driver's URI; the path may hold any character.
func (e *sqliteEngine) dsn(extra url.Values) string {
	q := url.Values{"_pragma": {
		fmt.Sprintf("busy_timeout(%d)", e.wait.Milliseconds()), "foreign_keys(1)", "synchronous(FULL)", "trusted_schema(0)", "secure_delete(1)",
	}}
	for k, v := range extra {
		q[k] = append(q[k], v...)
	}
	path := filepath.ToSlash(e.path)
	if path[0] != '/' {
		path = "/" + path // C:/x becomes file:///C:/x
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

func (e *sqliteEngine) open(context.Context) (writer, reader *sql.DB, err error) {
	if err := e.createFile(); err != nil {
		return nil, nil, err
	}
	writer, err = sql.Open("sqlite", e.dsn(url.Values{"_txlock": {"immediate"}, "_pragma": {"journal_mode(WAL)"}}))
	if err != nil {
		return nil, nil, err
	}
	writer.SetMaxOpenConns(1)
	reader, err = sql.Open("sqlite", e.dsn(url.Values{"_pragma": {"query_only(1)"}}))
	if err != nil {
		return nil, nil, errors.Join(err, writer.Close())
	}
	reader.SetMaxOpenConns(maxReaders)
	return writer, reader, nil
}

// createFile makes the file with a mode that only its owner can read; the WAL inherits it.
func (e *sqliteEngine) createFile() error {
	if err := os.MkdirAll(filepath.Dir(e.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// snapshot writes a whole, consistent copy beside the file.
func (e *sqliteEngine) snapshot(ctx context.Context, db *sql.DB, from, to int64) (string, error) {
	path := fmt.Sprintf("%s.schema%d-before-%d.%s", e.path, from, to, time.Now().UTC().Format("20060102T150405.000"))
	if err := vacuumInto(ctx, db, path); err != nil {
		return "", err
	}
	return path, nil
}

// vacuumInto writes a copy of the database to path, readable by the owner only.
func vacuumInto(ctx context.Context, db *sql.DB, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, path); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (e *sqliteEngine) begin(context.Context, *sql.Tx) error { return nil } // _txlock=immediate

func (e *sqliteEngine) announce(context.Context, *sql.Tx, uint64) error { return nil }

func (e *sqliteEngine) listen(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}

func (e *sqliteEngine) beginSnapshot(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	return db.BeginTx(ctx, nil) // the read pool begins deferred: the first query takes the snapshot
}

func (e *sqliteEngine) tablesQuery() string {
	return `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name`
}

func (e *sqliteEngine) referencesQuery() string {
	return `SELECT DISTINCT "table" FROM pragma_foreign_key_list($1)`
}

func (e *sqliteEngine) classify(err error) error {
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return ErrReadOnly
	}
	if errors.Is(err, syscall.ENOSPC) {
		return ErrFull
	}
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return nil
	}
	switch se.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
		sqlite3.SQLITE_CONSTRAINT_ROWID, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return ErrConflict
	}
	switch se.Code() & 0xff { // the low byte is the primary code
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return ErrLocked
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return ErrCorrupt
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN:
		return ErrReadOnly
	case sqlite3.SQLITE_FULL:
		return ErrFull
	default:
		return nil
	}
}

// retryable is false for a lock too: the driver has already waited for it.
func (e *sqliteEngine) retryable(error) bool { return false }
