package store

import "context"

// ExecForTest runs a statement on the writer.
func (s *Store) ExecForTest(ctx context.Context, query string, args ...any) error {
	_, err := s.writer.ExecContext(ctx, query, args...)
	return s.mapError(err)
}

// MigrateForTest brings an empty database to an old schema.
func MigrateForTest(ctx context.Context, cfg Config, version int64) error {
	s, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	p, err := s.provider()
	if err != nil {
		return err
	}
	_, err = p.UpTo(ctx, version)
	return err
}
