package audit

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/postern-zt/postern/proto/ids"
)

// maxShip bounds the records of one Ingest.
const maxShip = 4096

// Shipment is what a connector delivers at once.
type Shipment struct {
	Connector ids.ConnectorID
	// Key is the connector's registered identity key.
	Key ids.KeyID
	// Records are lines of its chain, in order.
	Records [][]byte
	// SignedHead is its signature over them (chain.SignedHead); empty from a connector that
	// does not sign yet.
	SignedHead []byte
}

// Ingest takes records of a connector's chain and returns the number through which the store
// has them; the connector may forget those. The signature is verified first. Records that are
// there already are compared and skipped. A record that contradicts a stored one is ErrForked.
// When records before the first one are missing (the store was restored from a backup), the
// gap is signed and recorded, and the chain goes on after it. A refusal, which is an error
// with a Reason, is recorded.
func (l *Log) Ingest(ctx context.Context, s Shipment) (through uint64, err error) {
	through, err = l.ingest(ctx, s)
	if err == nil {
		return through, nil
	}
	if reason := Reason(err); reason != "" {
		l.AppendBestEffort(Event{Kind: Denied, Connector: s.Connector, Reasons: []string{reason}, Details: map[string]string{
			"what": "flow records of a connector",
		}})
	}
	return through, fmt.Errorf("ingest from %s: %w", s.Connector, err)
}

func (l *Log) ingest(ctx context.Context, s Shipment) (through uint64, err error) {
	signed, err := s.openHead()
	if err != nil {
		return 0, err
	}
	rows, err := parseShipped(string(s.Connector), s.Records)
	if err != nil {
		return 0, err
	}
	if err := signed.covers(rows); err != nil {
		return 0, err
	}
	head, err := l.cfg.Store.AuditHead(ctx, string(s.Connector))
	if err != nil || len(rows) == 0 {
		return head.Seq, err
	}
	var gap *segmentBody
	if rows[0].Seq > head.Seq+1 {
		if gap, err = l.acceptGap(ctx, head, rows[0]); err != nil {
			return head.Seq, err
		}
	}
	if through, err = l.store(ctx, rows, gap, signed); err != nil {
		return head.Seq, err
	}
	return through, nil
}

// shipped is a parsed record of another writer.
type shipped struct {
	Row
	prev Hash
}

// parseShipped checks that lines are a chain of writer.
func parseShipped(writer string, lines [][]byte) ([]shipped, error) {
	if len(lines) > maxShip {
		return nil, fmt.Errorf("%w: %d records at once, at most %d", ErrMalformed, len(lines), maxShip)
	}
	rows := make([]shipped, 0, len(lines))
	for i, line := range lines {
		r, err := ParseLine(line)
		if err != nil {
			return nil, fmt.Errorf("record %d of %d: %w", i+1, len(lines), err)
		}
		if r.Writer != writer {
			return nil, fmt.Errorf("record %d of %d: %w: written by %q", i+1, len(lines), ErrMalformed, r.Writer)
		}
		if i > 0 && (r.Seq != rows[i-1].Seq+1 || r.Prev != rows[i-1].Hash) {
			return nil, fmt.Errorf("record %d: %w: does not follow the one before it", r.Seq, ErrForked)
		}
		rows = append(rows, shipped{Row: rowOf(r, line), prev: r.Prev})
	}
	return rows, nil
}

// acceptGap signs what is there and the gap after it, and records the gap.
func (l *Log) acceptGap(ctx context.Context, head Head, first shipped) (*segmentBody, error) {
	if err := l.signChain(ctx, head, true); err != nil {
		return nil, err
	}
	gap := segmentBody{Writer: first.Writer, First: head.Seq + 1, Last: first.Seq - 1, Prev: head.Hash, Head: first.prev, Gap: true}
	s, err := l.seal(gap)
	if err != nil {
		return nil, err
	}
	_, err = l.Append(ctx, Event{Kind: Gap, Connector: ids.ConnectorID(first.Writer), Details: map[string]string{
		"from": strconv.FormatUint(gap.First, 10), "to": strconv.FormatUint(gap.Last, 10),
	}})
	if err != nil {
		return nil, err
	}
	return &gap, l.cfg.Store.AddAuditSegment(ctx, s)
}

// store appends the rows that are new, and what their connector signed beside them.
func (l *Log) store(ctx context.Context, rows []shipped, gap *segmentBody, signed *ConnectorHead) (through uint64, err error) {
	err = l.cfg.Store.AppendAudit(ctx, rows[0].Writer, func(ctx context.Context, head Head) ([]Row, error) {
		through = head.Seq
		fresh, err := l.skipKnown(ctx, head, rows)
		if err != nil || len(fresh) == 0 {
			return nil, err
		}
		if !follows(head, fresh[0], gap) {
			return nil, fmt.Errorf("record %d: %w: it does not follow record %d", fresh[0].Seq, ErrForked, head.Seq)
		}
		through = fresh[len(fresh)-1].Seq
		if signed == nil {
			return plain(fresh), nil
		}
		return plain(fresh), l.cfg.Store.AddConnectorHead(ctx, *signed)
	})
	return through, err
}

// follows reports whether row continues the chain at head, directly or over the gap.
func follows(head Head, row shipped, gap *segmentBody) bool {
	if row.Seq == head.Seq+1 {
		return row.prev == head.Hash
	}
	return gap != nil && gap.First == head.Seq+1 && gap.Prev == head.Hash &&
		row.Seq == gap.Last+1 && row.prev == gap.Head
}

func plain(rows []shipped) []Row {
	out := make([]Row, len(rows))
	for i, r := range rows {
		out[i] = r.Row
	}
	return out
}

// skipKnown returns the rows after head, and compares the others with what is stored, as
// far as it was not dropped.
func (l *Log) skipKnown(ctx context.Context, head Head, rows []shipped) ([]shipped, error) {
	known := 0
	for known < len(rows) && rows[known].Seq <= head.Seq {
		known++
	}
	if known == 0 {
		return rows, nil
	}
	stored, err := l.cfg.Store.AuditRows(ctx, head.Writer, rows[0].Seq-1, known)
	if err != nil {
		return nil, err
	}
	byseq := make(map[uint64]Hash, len(stored))
	for _, s := range stored {
		byseq[s.Seq] = s.Hash
	}
	for _, r := range rows[:known] {
		if have, ok := byseq[r.Seq]; ok && have != r.Hash {
			return nil, errors.Join(ErrForked, &Break{Writer: r.Writer, Seq: r.Seq, Reason: "another record is stored under this number"})
		}
	}
	return rows[known:], nil
}
