package store

import (
	"context"
	"time"
)

// scanner is a row to be read: *sql.Row or *sql.Rows.
type scanner interface {
	Scan(dest ...any) error
}

// scanRows runs a query and returns one T for each row. Errors carry the
// sentinels of this package.
func scanRows[T any](ctx context.Context, q queryer, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, q.mapError(err)
	}
	defer func() { _ = rows.Close() }() // its error is in rows.Err
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, q.mapError(err)
		}
		all = append(all, one)
	}
	return all, q.mapError(rows.Err())
}

// scanRow runs a query for one row and returns it as T, or ErrNotFound.
func scanRow[T any](ctx context.Context, q queryer, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	one, err := scan(q.QueryRowContext(ctx, query, args...))
	return one, q.mapError(err)
}

// scanOne is the scan function of queries with one column.
func scanOne[T any](row scanner) (T, error) {
	var v T
	err := row.Scan(&v)
	return v, err
}

// unixMilli is how times are stored. The zero time is 0.
func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// fromMilli reads what unixMilli wrote, in UTC. 0 is the zero time.
func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
