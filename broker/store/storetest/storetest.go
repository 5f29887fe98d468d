// Package storetest runs tests of the broker on both database engines. Each package with
// such tests calls Main from its TestMain; a test calls Each or EachDSN. PostgreSQL is a real
// server, started once per test process on a Unix socket in a temporary directory; each test
// gets a fresh database. Without the server's binaries the postgres subtests skip, and fail
// when CI=true. It must not be imported by anything but tests. Its functions may be called
// from parallel tests.
package storetest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/proto/ids"
)

// envServer holds the DSN of the running server; whoever sets it before the tests gives
// them a server of his own.
const envServer = "POSTERN_TEST_POSTGRES"

// Main runs the tests with a PostgreSQL server beside them and exits. Each check runs after
// the tests passed and the server stopped; its error fails the run.
//
//	func TestMain(m *testing.M) { storetest.Main(m, storetest.Leaks) }
func Main(m *testing.M, checks ...func() error) {
	code := run(m)
	for _, check := range checks {
		if code != 0 {
			break
		}
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Leaks is a check of Main: no goroutine is left.
func Leaks() error { return goleak.Find() }

func run(m *testing.M) int {
	if os.Getenv(envServer) != "" {
		return m.Run()
	}
	srv, err := startServer()
	if err != nil {
		fmt.Fprintln(os.Stderr, "storetest: no PostgreSQL:", err)
		return m.Run()
	}
	defer srv.stop()
	if err := os.Setenv(envServer, srv.dsn); err != nil {
		fmt.Fprintln(os.Stderr, "storetest:", err)
		return 1
	}
	return m.Run()
}

// Each runs f as the subtests sqlite and postgres. Each call of open opens another Store
// over the same fresh database, as a restarted or second broker would; it is closed when
// the subtest ends.
func Each(t *testing.T, f func(t *testing.T, open func() *store.Store)) {
	t.Helper()
	EachDSN(t, func(t *testing.T, dsn string) {
		f(t, func() *store.Store { return Open(t, dsn) })
	})
}

// EachDSN runs f as the subtests sqlite and postgres with the DSN of a fresh database.
func EachDSN(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, Postgres(t)) })
}

// Open opens the database and closes it when the test ends.
func Open(t *testing.T, dsn string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{DSN: dsn, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// SQLite returns the DSN of a database file that does not exist yet.
func SQLite(t *testing.T) string {
	t.Helper()
	return "sqlite:" + filepath.Join(t.TempDir(), "broker.db")
}

// Postgres returns the DSN of a fresh, empty database, which is dropped when the test ends.
func Postgres(t *testing.T) string {
	t.Helper()
	server := os.Getenv(envServer)
	if server == "" {
		skip(t, "no PostgreSQL server: install it, and call storetest.Main from TestMain")
	}
	name := "t" + strings.TrimPrefix(string(ids.New[ids.OrgID]()), "org_")
	admin(t, t.Context(), server, `CREATE DATABASE `+name+` TEMPLATE template0`)
	t.Cleanup(func() { admin(t, context.WithoutCancel(t.Context()), server, `DROP DATABASE `+name+` WITH (FORCE)`) })
	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("parse %s: %v", envServer, err)
	}
	u.Path = "/" + name
	return u.String()
}

// admin runs one statement on the server's own database.
func admin(t *testing.T, ctx context.Context, server, stmt string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Fatalf("connect to the test server: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing to save on it
	if _, err := conn.Exec(ctx, stmt); err != nil {
		t.Fatalf("%s: %v", stmt, err)
	}
}

// skip skips on a developer's machine and fails where everything must run.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
