package audit

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

// Query selects records; empty fields match all.
type Query struct {
	Writer  string
	Kind    Kind
	User    ids.UserID
	Device  ids.DeviceID
	Session ids.SessionID
	App     ids.AppID
	Receipt ids.ReceiptID
	From    time.Time // inclusive
	To      time.Time // exclusive
	// Before continues after the last record of the page before; zero starts at the newest.
	Before Position
	// Limit is the size of the page. Zero means 100, more than 1000 means 1000.
	Limit int
}

// Position is a place in the order of a search: newest first, then writer and number.
type Position struct {
	At     time.Time
	Writer string
	Seq    uint64
}

// String is the form of a page token.
func (p Position) String() string {
	if p.Writer == "" {
		return ""
	}
	return fmt.Sprintf("%d.%d.%s", p.At.UnixMilli(), p.Seq, p.Writer)
}

// ParsePosition reads a page token; the empty one is the start.
func ParsePosition(s string) (Position, error) {
	if s == "" {
		return Position{}, nil
	}
	parts := strings.SplitN(s, ".", 3)
	if len(parts) != 3 || parts[2] == "" || len(s) > maxField {
		return Position{}, fmt.Errorf("%w: page token", ErrMalformed)
	}
	at, err := strconv.ParseInt(parts[0], 10, 64)
	if err != nil {
		return Position{}, fmt.Errorf("%w: page token", ErrMalformed)
	}
	seq, err := strconv.ParseUint(parts[1], 10, 62)
	if err != nil {
		return Position{}, fmt.Errorf("%w: page token", ErrMalformed)
	}
	return Position{At: time.UnixMilli(at).UTC(), Writer: parts[2], Seq: seq}, nil
}

// Found is one record of a search: parsed, and as it stands in the chain.
type Found struct {
	Record
	Line []byte
}

// Search returns the records that match q, newest first, and where the next page starts
// (empty after the last one).
func (l *Log) Search(ctx context.Context, q Query) ([]Found, Position, error) {
	q.Limit = min(orDefault(q.Limit, defaultPage), maxPage)
	rows, err := l.cfg.Store.SearchAudit(ctx, q)
	if err != nil {
		return nil, Position{}, fmt.Errorf("search audit: %w", err)
	}
	found := make([]Found, 0, len(rows))
	for _, row := range rows {
		r, err := ParseLine(row.Line)
		if err != nil {
			return nil, Position{}, fmt.Errorf("search audit: %s %d: %w", row.Writer, row.Seq, err)
		}
		found = append(found, Found{Record: r, Line: row.Line})
	}
	if len(rows) < q.Limit {
		return found, Position{}, nil
	}
	last := rows[len(rows)-1]
	return found, Position{At: last.At, Writer: last.Writer, Seq: last.Seq}, nil
}
