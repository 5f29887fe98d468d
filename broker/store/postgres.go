package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	enginePostgres = "postgres"
	// maxPostgresConns is the pool of one broker; a server allows 100 by default.
	maxPostgresConns = 16
	// channel is the LISTEN/NOTIFY channel; the payload is the sequence and nothing else.
	channel = "postern_change"
	// connectTimeout bounds the wait for the server.
	connectTimeout = 10 * time.Second
)

// postgresEngine is a database on a server that several brokers share.
type postgresEngine struct {
	cfg *pgx.ConnConfig
}

func newPostgres(dsn string, wait time.Duration) (engine, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The error of ParseConfig may quote the DSN, and with it a password.
		return nil, errors.New("store: the postgres DSN cannot be parsed; write postgres://user:password@host:5432/name")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	// A broker that hangs inside a transaction must not hold the writers' lock for ever.
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "15s"
	cfg.RuntimeParams["lock_timeout"] = strconv.FormatInt(wait.Milliseconds(), 10)
	cfg.RuntimeParams["application_name"] = "postern-broker"
	return &postgresEngine{cfg: cfg}, nil
}

func (e *postgresEngine) name() string { return enginePostgres }

func (e *postgresEngine) open(context.Context) (writer, reader *sql.DB, err error) {
	db := stdlib.OpenDB(*e.cfg)
	db.SetMaxOpenConns(maxPostgresConns)
	db.SetMaxIdleConns(maxPostgresConns / 2)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return db, db, nil
}

// snapshot does nothing: the server's operator has backups, and postern-broker backup.
func (e *postgresEngine) snapshot(context.Context, *sql.DB, int64, int64) (string, error) {
	return "", nil
}

// begin takes the writers' lock before the transaction sees anything. LOCK TABLE takes no
// snapshot, so what is read afterwards is what the last writer left.
func (e *postgresEngine) begin(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `LOCK TABLE change_counter IN EXCLUSIVE MODE`)
	return err
}

func (e *postgresEngine) announce(ctx context.Context, tx *sql.Tx, seq uint64) error {
	_, err := tx.ExecContext(ctx, `SELECT pg_notify('`+channel+`', $1)`, strconv.FormatUint(seq, 10))
	return err
}

// listen holds one connection of its own.
func (e *postgresEngine) listen(ctx context.Context, wake func()) error {
	conn, err := pgx.ConnectConfig(ctx, e.cfg.Copy())
	if err != nil {
		return fmt.Errorf("connect listener: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing to save on it
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	wake() // what was committed before LISTEN took effect
	for {
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		wake()
	}
}

func (e *postgresEngine) beginSnapshot(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	return db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
}

func (e *postgresEngine) tablesQuery() string {
	return `SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename`
}

func (e *postgresEngine) referencesQuery() string {
	return `SELECT DISTINCT f.relname::text FROM pg_constraint k
		JOIN pg_class t ON t.oid = k.conrelid JOIN pg_class f ON f.oid = k.confrelid
		WHERE k.contype = 'f' AND t.relnamespace = current_schema()::regnamespace AND t.relname::text = $1`
}

func (e *postgresEngine) classify(err error) error {
	var ce *pgconn.ConnectError
	if errors.As(err, &ce) {
		return ErrUnavailable
	}
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return nil
	}
	switch pe.Code {
	case "23505", "23503": // unique_violation, foreign_key_violation
		return ErrConflict
	case "55P03": // lock_not_available
		return ErrLocked
	case "25006": // read_only_sql_transaction
		return ErrReadOnly
	case "53100": // disk_full
		return ErrFull
	case "XX001", "XX002": // data_corrupted, index_corrupted
		return ErrCorrupt
	}
	return classOf(pe.Code)
}

// classOf maps by the class, the first two characters of an SQLSTATE.
func classOf(code string) error {
	if len(code) != 5 {
		return nil
	}
	switch code[:2] {
	case "08", "28", "3D", "57": // connection, authorization, no such database, shutting down
		return ErrUnavailable
	default:
		return nil
	}
}

// retryable: serialization_failure and deadlock_detected.
func (e *postgresEngine) retryable(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (pe.Code == "40001" || pe.Code == "40P01")
}
