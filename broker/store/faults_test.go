package store_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
)

func config(dsn string) store.Config {
	return store.Config{DSN: dsn, Version: "1.0", LockWait: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
}

// wantOpenError checks that Open fails with want and says what to do.
func wantOpenError(t *testing.T, cfg store.Config, want error, advice ...string) {
	t.Helper()
	s, err := store.Open(t.Context(), cfg)
	if err == nil {
		s.Close()
		t.Fatalf("Open succeeded, want %v", want)
	}
	if !errors.Is(err, want) {
		t.Errorf("Open = %v, want %v", err, want)
	}
	for _, a := range advice {
		if !strings.Contains(err.Error(), a) {
			t.Errorf("Open = %v, want it to say %q", err, a)
		}
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	storetest.EachDSN(t, func(t *testing.T, dsn string) {
		cfg := config(dsn)
		cfg.Version = "2.5"
		s, err := store.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.ExecForTest(t.Context(), `INSERT INTO schema_version (version_id, is_applied) VALUES (9001, TRUE)`); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantOpenError(t, config(dsn), store.ErrNewerSchema, "schema is 9001", "written by version 2.5", "this program is version 1.0", "run the newer program")
	})
}

func TestSnapshotBeforeMigration(t *testing.T) {
	dsn := storetest.SQLite(t)
	if err := store.MigrateForTest(t.Context(), config(dsn), 1); err != nil {
		t.Fatal(err)
	}
	storetest.Open(t, dsn)
	path := strings.TrimPrefix(dsn, "sqlite:")
	found, err := filepath.Glob(path + ".schema1-before-*")
	if err != nil || len(found) != 1 {
		t.Fatalf("snapshots = %v, %v, want one", found, err)
	}
	if info, err := os.Stat(found[0]); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("snapshot: %v, %v, want a private file", info, err)
	}
	moved := filepath.Join(t.TempDir(), "moved.db")
	if err := os.Rename(found[0], moved); err != nil {
		t.Fatal(err)
	}
	storetest.Open(t, "sqlite:"+moved) // it is a whole database
	storetest.Open(t, dsn)
	if again, _ := filepath.Glob(path + ".schema1-before-*"); len(again) != 0 {
		t.Errorf("a snapshot without a migration: %v", again)
	}
}

func TestTwoBrokersMigrateAtOnce(t *testing.T) {
	dsn := storetest.Postgres(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			s, err := store.Open(t.Context(), config(dsn))
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestDatabaseLocked(t *testing.T) {
	storetest.EachDSN(t, func(t *testing.T, dsn string) {
		a, err := store.Open(t.Context(), config(dsn))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := store.Open(t.Context(), config(dsn))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		err = a.InTx(t.Context(), func(*store.Tx) error {
			if err := b.SetMeta(t.Context(), "x", "1"); !errors.Is(err, store.ErrLocked) {
				t.Errorf("write beside a writer = %v, want ErrLocked", err)
			}
			if _, err := b.Version(t.Context()); err != nil {
				t.Errorf("read beside a writer = %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.SetMeta(t.Context(), "x", "1"); err != nil {
			t.Errorf("write after the writer = %v", err)
		}
	})
}

func TestOpenLockedFile(t *testing.T) {
	dsn := storetest.SQLite(t)
	db, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(dsn, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `BEGIN EXCLUSIVE`); err != nil {
		t.Fatal(err)
	}
	wantOpenError(t, config(dsn), store.ErrLocked, "is another broker running")
}

func TestCorruptFile(t *testing.T) {
	dsn := storetest.SQLite(t)
	path := strings.TrimPrefix(dsn, "sqlite:")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database ", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantOpenError(t, config(dsn), store.ErrCorrupt, "restore the last backup")
}

func TestDamagedPages(t *testing.T) {
	dsn := storetest.SQLite(t)
	s, err := store.Open(t.Context(), config(dsn))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetMeta(t.Context(), "a", strings.Repeat("x", 100)), s.Close()); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(dsn, "sqlite:")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(file); i++ {
		file[i] = 0xa5
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	wantOpenError(t, config(dsn), store.ErrCorrupt, "restore the last backup")
}

func TestDiskFull(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	if err := s.ExecForTest(t.Context(), `PRAGMA max_page_count = 1`); err != nil { // no growth from here
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = s.SetMeta(t.Context(), strings.Repeat("k", i+1), strings.Repeat("v", 4096))
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("writes without space = %v, want ErrFull", err)
	}
	if _, err := s.Version(t.Context()); err != nil {
		t.Errorf("read on a full disk = %v", err)
	}
	if err := s.ExecForTest(t.Context(), `PRAGMA max_page_count = 100000`); err != nil {
		t.Fatal(err)
	}
	if err := s.SetMeta(t.Context(), "after", "1"); err != nil {
		t.Errorf("write after space came back = %v", err)
	}
}

func TestReadOnlyPostgres(t *testing.T) {
	dsn := storetest.Postgres(t)
	s := storetest.Open(t, dsn)
	if err := s.ExecForTest(t.Context(), `SET default_transaction_read_only = on`); err != nil {
		t.Fatal(err)
	}
	// The pool hands the same idle connection out again.
	if err := s.ExecForTest(t.Context(), `INSERT INTO meta (key, value) VALUES ('x', 'y')`); !errors.Is(err, store.ErrReadOnly) {
		t.Errorf("write into a read-only server = %v, want ErrReadOnly", err)
	}
}

func TestServerUnavailable(t *testing.T) {
	wantOpenError(t, config("postgres://u:hunter2@127.0.0.1:1/x?sslmode=disable"), store.ErrUnavailable, "check that the server runs")
	_, err := store.Open(t.Context(), config("postgres://u:hunter2@127.0.0.1:1/x?sslmode=disable"))
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows the password: %v", err)
	}
	_, err = store.Open(t.Context(), config("postgres://u:hunter2@ho st:x/%zz"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a malformed DSN: %v", err)
	}
	for _, dsn := range []string{"", "mysql://x", "sqlite:"} {
		if _, err := store.Open(t.Context(), config(dsn)); err == nil {
			t.Errorf("Open(%q) succeeded", dsn)
		}
	}
}

func TestConstraintsAreConflicts(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		insert := `INSERT INTO meta (key, value) VALUES ($1, $2)`
		if err := s.ExecForTest(t.Context(), insert, "k", "v"); err != nil {
			t.Fatal(err)
		}
		if err := s.ExecForTest(t.Context(), insert, "k", "v"); !errors.Is(err, store.ErrConflict) {
			t.Errorf("second insert = %v, want ErrConflict", err)
		}
		if err := s.ExecForTest(t.Context(), insert, "n", nil); err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("NULL into NOT NULL = %v, want an error that is no conflict", err)
		}
	})
}

func TestCancelledContext(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.SetMeta(ctx, "a", "b"); !errors.Is(err, context.Canceled) {
			t.Errorf("SetMeta = %v, want context.Canceled", err)
		}
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("Ping = %v", err)
		}
	})
}
