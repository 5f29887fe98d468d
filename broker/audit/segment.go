package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

const (
	defaultSegmentRecords = 1024
	defaultSegmentEvery   = 10 * time.Minute
	segmentVersion        = 1
)

// Segment is a signed range of a chain as it rests in the store.
type Segment struct {
	Writer  string
	First   uint64
	Last    uint64
	Head    Hash   // of record Last
	Signed  []byte // envelope of proto/seal around segmentBody
	Dropped bool   // its records left the store
	At      time.Time
}

// segmentBody is what is signed: the range, the hash before it and the hash at its end.
type segmentBody struct {
	V      int    `json:"v"`
	Writer string `json:"writer"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
	Prev   Hash   `json:"prev"`
	Head   Hash   `json:"head"`
	TimeMS int64  `json:"time_ms"`
	// Gap marks records that the signing broker never had.
	Gap bool `json:"gap,omitempty"`
}

func (l *Log) seal(b segmentBody) (Segment, error) {
	b.V, b.TimeMS = segmentVersion, time.Now().UnixMilli()
	payload, err := json.Marshal(b)
	if err != nil {
		return Segment{}, fmt.Errorf("encode segment: %w", err)
	}
	return Segment{
		Writer: b.Writer, First: b.First, Last: b.Last, Head: b.Head, Dropped: b.Gap, At: time.UnixMilli(b.TimeMS),
		Signed: l.cfg.Signer.Seal(seal.Segment, payload),
	}, nil
}

// openSegment verifies the signature before it reads anything.
func openSegment(trusted seal.Keys, signed []byte) (segmentBody, error) {
	payload, err := trusted.Open(seal.Segment, signed)
	if err != nil {
		return segmentBody{}, err
	}
	var b segmentBody
	if err := json.Unmarshal(payload, &b); err != nil {
		return segmentBody{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if b.V != segmentVersion || b.First == 0 || b.Last < b.First {
		return segmentBody{}, fmt.Errorf("%w: segment range", ErrMalformed)
	}
	return b, nil
}

// SignSegments signs what no segment covers yet, in all chains of the store: those that are
// long or old enough, or all.
func (l *Log) SignSegments(ctx context.Context, all bool) error {
	heads, err := l.cfg.Store.AuditHeads(ctx)
	if err != nil {
		return fmt.Errorf("sign segments: %w", err)
	}
	for _, head := range heads {
		if err := l.signChain(ctx, head, all); err != nil {
			return fmt.Errorf("sign segments of %s: %w", head.Writer, err)
		}
	}
	return nil
}

func (l *Log) signChain(ctx context.Context, head Head, all bool) error {
	for {
		start, err := l.signedThrough(ctx, head.Writer)
		if err != nil || start.Seq >= head.Seq {
			return err
		}
		rows, err := l.cfg.Store.AuditRows(ctx, head.Writer, start.Seq, l.cfg.SegmentRecords)
		if err != nil || len(rows) == 0 {
			return err
		}
		if !all && len(rows) < l.cfg.SegmentRecords && time.Since(rows[0].At) < l.cfg.SegmentEvery {
			return nil
		}
		if rows, err = l.toConnectorHead(ctx, rows); err != nil {
			return err
		}
		if err := l.signRows(ctx, start, rows); err != nil {
			return err
		}
	}
}

// signedThrough returns the end of the last segment.
func (l *Log) signedThrough(ctx context.Context, writer string) (Head, error) {
	last, err := l.cfg.Store.LastAuditSegment(ctx, writer)
	return Head{Writer: writer, Seq: last.Last, Hash: last.Head}, err
}

// signRows signs rows as one segment, after checking that they are a chain after start: a
// signature must not cover what was changed before it.
func (l *Log) signRows(ctx context.Context, start Head, rows []Row) error {
	c := track{writer: start.Writer, seq: start.Seq, hash: start.Hash}
	for _, row := range rows {
		if err := c.row(row); err != nil {
			return err
		}
	}
	s, err := l.seal(segmentBody{Writer: start.Writer, First: start.Seq + 1, Last: c.seq, Prev: start.Hash, Head: c.hash})
	if err != nil {
		return err
	}
	return l.cfg.Store.AddAuditSegment(ctx, s)
}

// Drop deletes the records of writer up to through, which must be the end of a signed
// segment, and records that. Export them first.
func (l *Log) Drop(ctx context.Context, writer string, through uint64, by ids.UserID) error {
	segs, err := l.cfg.Store.AuditSegments(ctx, writer)
	if err != nil {
		return fmt.Errorf("drop audit: %w", err)
	}
	if !endsAt(segs, through) {
		return fmt.Errorf("drop audit of %s through %d: %w", writer, through, ErrNotSigned)
	}
	_, err = l.Append(ctx, Event{Kind: Dropped, Actor: by, Details: map[string]string{
		"writer": writer, "through": strconv.FormatUint(through, 10),
	}})
	if err != nil {
		return err
	}
	if _, err := l.cfg.Store.DropAudit(ctx, writer, through); err != nil {
		return fmt.Errorf("drop audit: %w", err)
	}
	return nil
}

func endsAt(segs []Segment, through uint64) bool {
	for _, s := range segs {
		if s.Last == through {
			return true
		}
	}
	return false
}
