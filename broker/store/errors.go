package store

import (
	"database/sql"
	"errors"
	"fmt"
)

// Sentinels that callers branch on. They are always wrapped; test with errors.Is.
var (
	// ErrNotFound: no row has this key.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a row with this key or name exists, or the row is still referred to.
	ErrConflict = errors.New("conflict")
	// ErrNewerSchema: the database was written by a newer program.
	ErrNewerSchema = errors.New("the database belongs to a newer version")
	// ErrLocked: another process holds the database for too long.
	ErrLocked = errors.New("the database is locked by another process")
	// ErrCorrupt: the file is damaged or is no database.
	ErrCorrupt = errors.New("the database file is damaged")
	// ErrReadOnly: the database cannot be written.
	ErrReadOnly = errors.New("the database is read-only")
	// ErrFull: there is no space left for the database.
	ErrFull = errors.New("no space left for the database")
	// ErrUnavailable: the database server cannot be reached or refuses us.
	ErrUnavailable = errors.New("the database server is not available")
)

// advice says what the operator does about an error of Open; see the manual for the commands.
func advice(err error) string {
	switch {
	case errors.Is(err, ErrLocked):
		return "is another broker running on the same file? stop it, or use PostgreSQL for several brokers"
	case errors.Is(err, ErrCorrupt):
		return "restore the last backup (postern-broker restore); the snapshot written before the last upgrade lies beside the file"
	case errors.Is(err, ErrReadOnly):
		return "give the broker's user write access to the file and its directory, and check that the file system is not mounted read-only"
	case errors.Is(err, ErrFull):
		return "free space on the file system of the database, then start again"
	case errors.Is(err, ErrNewerSchema):
		return "run the newer program, or restore the snapshot written before the upgrade"
	case errors.Is(err, ErrUnavailable):
		return "check that the server runs, and host, port, user and password in the DSN"
	default:
		return ""
	}
}

// openError adds place and advice to an error of Open.
func (s *Store) openError(err error) error {
	err = s.mapError(err)
	if hint := advice(err); hint != "" {
		return fmt.Errorf("open %s store: %w: %s", s.engine.name(), err, hint)
	}
	return fmt.Errorf("open %s store: %w", s.engine.name(), err)
}

// mapError puts the sentinel of this package in front of a driver's error.
func (s *Store) mapError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	if known := s.engine.classify(err); known != nil && !errors.Is(err, known) {
		return fmt.Errorf("%w: %w", known, err)
	}
	return err
}
