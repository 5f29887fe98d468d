package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations
var migrations embed.FS

// A broker that starts beside another one waits for its migration: a try each second for two
// minutes.
const (
	lockPeriod = 1
	lockTries  = 120
)

// metaProgram is the meta key of the version that wrote the schema last.
const metaProgram = "program_version"

// migrate brings the schema up to the newest migration of this program, after a snapshot.
func (s *Store) migrate(ctx context.Context) error {
	provider, err := s.provider()
	if err != nil {
		return fmt.Errorf("load migrations: %w", err)
	}
	have, want, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	switch {
	case have > want:
		return s.newerSchema(ctx, have, want)
	case have == want:
		return nil
	}
	return s.upgrade(ctx, provider, have, want)
}

func (s *Store) upgrade(ctx context.Context, provider *goose.Provider, have, want int64) error {
	if have > 0 {
		path, err := s.engine.snapshot(ctx, s.writer, have, want)
		if err != nil {
			return fmt.Errorf("snapshot before migration: %w", err)
		}
		s.log.Info("migrating the schema", "from", have, "to", want, "snapshot", path)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate schema %d to %d: %w", have, want, err)
	}
	return s.SetMeta(ctx, metaProgram, s.programVersion())
}

func (s *Store) programVersion() string {
	if s.cfg.Version == "" {
		return "unknown"
	}
	return s.cfg.Version
}

// newerSchema names both programs and both schemas.
func (s *Store) newerSchema(ctx context.Context, have, want int64) error {
	by, err := s.Meta(ctx, metaProgram)
	if err != nil {
		by = "unknown" // the newer schema may keep it elsewhere
	}
	return fmt.Errorf("%w: its schema is %d, written by version %s; this program is version %s and knows schema %d",
		ErrNewerSchema, have, by, s.programVersion(), want)
}

func (s *Store) provider() (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations/"+s.engine.name())
	if err != nil {
		return nil, err
	}
	if s.engine.name() == engineSQLite {
		return newProvider(goose.DialectSQLite3, s.writer, files)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(lockPeriod, lockTries))
	if err != nil {
		return nil, err
	}
	return newProvider(goose.DialectPostgres, s.writer, files, goose.WithSessionLocker(locker))
}

func newProvider(dialect goose.Dialect, db *sql.DB, files fs.FS, opts ...goose.ProviderOption) (*goose.Provider, error) {
	opts = append(opts, goose.WithTableName("schema_version"), goose.WithDisableGlobalRegistry(true))
	return goose.NewProvider(dialect, db, files, opts...)
}
