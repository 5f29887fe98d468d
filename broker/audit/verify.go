package audit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// verifyPage is how many rows verification and export read at once.
const verifyPage = 1000

// Trust is what verification goes by; without anything in it nothing is trusted.
type Trust struct {
	// Keys are the brokers' keys that sign segments.
	Keys seal.Keys
	// Remembered are heads that others kept: they must still be there.
	Remembered []Head
	// Registered are identity keys of connectors as the broker knows them: what is signed must
	// be signed with them. A connector that does not sign yet is shown as unsigned.
	Registered map[ids.ConnectorID]ids.KeyID
	// Pinned are those that an administrator read at the connector: all of its records must
	// be signed with them.
	Pinned map[ids.ConnectorID]ids.KeyID
}

// Report is what verification found.
type Report struct {
	Records uint64 // whose hashes were checked
	Writers []WriterReport
	Breaks  []*Break // the first one of each writer that has any
}

// OK reports whether every chain holds.
func (r Report) OK() bool { return len(r.Breaks) == 0 }

// WriterReport is the state of one chain.
type WriterReport struct {
	Writer  string
	Records uint64
	First   uint64 // first record that is present, 0 for none
	Head    Head
	Signed  uint64 // number of the last record that a segment covers
	Dropped uint64 // records that were archived and dropped
	Missing uint64 // records that never arrived, by signed gaps
	// Connector says that a connector wrote the chain, OwnSigned up to where it signed it
	// itself, and OwnKey with which identity key, in hexadecimal.
	Connector bool
	OwnSigned uint64
	OwnKey    string
}

// Unsigned is how many records at the end of a connector's chain only its broker vouches for.
func (w WriterReport) Unsigned() uint64 {
	if !w.Connector {
		return 0
	}
	return w.Head.Seq - w.OwnSigned
}

// track is the place at which the verification of one writer stands. It is fed records and
// segments in their order; the segment after the records that it covers.
type track struct {
	writer     string
	seq        uint64
	hash       Hash
	segEnd     Head // end of the last segment
	remembered map[uint64]Hash
	key        ids.KeyID // of the connector, zero until it is known
	pinned     bool
	report     WriterReport
}

func (c *track) broken(seq uint64, format string, args ...any) error {
	return &Break{Writer: c.writer, Seq: seq, Reason: fmt.Sprintf(format, args...)}
}

// line takes the next record.
func (c *track) line(line []byte) (Record, error) {
	r, err := ParseLine(line)
	switch {
	case err != nil:
		return Record{}, c.broken(c.seq+1, "%v", err)
	case r.Writer != c.writer:
		return Record{}, c.broken(c.seq+1, "the record belongs to %s", r.Writer)
	case r.Seq != c.seq+1:
		return Record{}, c.broken(c.seq+1, "missing, record %d follows", r.Seq)
	case r.Prev != c.hash:
		return Record{}, c.broken(r.Seq, "does not follow the record before it: one of the two was changed")
	}
	c.seq, c.hash = r.Seq, HashLine(line)
	if want, ok := c.remembered[r.Seq]; ok && want != c.hash {
		return Record{}, c.broken(r.Seq, "differs from the head that was remembered")
	}
	c.report.Records++
	if c.report.First == 0 {
		c.report.First = r.Seq
	}
	return r, nil
}

// row takes the next record and compares the columns that repeat it.
func (c *track) row(row Row) error {
	r, err := c.line(row.Line)
	if err != nil {
		return err
	}
	want := rowOf(r, row.Line)
	same := row.Seq == want.Seq && row.Hash == want.Hash && row.At.Equal(want.At) && row.Kind == want.Kind &&
		row.User == want.User && row.Device == want.Device && row.Session == want.Session &&
		row.App == want.App && row.Receipt == want.Receipt
	if !same {
		return c.broken(r.Seq, "the searchable columns differ from the record")
	}
	return nil
}

// segment takes a signed segment. present says that its records were fed before it.
func (c *track) segment(trusted seal.Keys, signed []byte, present bool) error {
	b, err := openSegment(trusted, signed)
	if err != nil {
		return c.broken(c.segEnd.Seq+1, "segment: %v", err)
	}
	if b.Writer != c.writer || b.First != c.segEnd.Seq+1 || b.Prev != c.segEnd.Hash {
		return c.broken(c.segEnd.Seq+1, "the segment %d to %d of %s does not follow the one before it", b.First, b.Last, b.Writer)
	}
	if !present {
		if err := c.skip(b); err != nil {
			return err
		}
	}
	if c.seq != b.Last {
		return c.broken(c.seq+1, "missing: the signed segment reaches to %d", b.Last)
	}
	if c.hash != b.Head {
		return c.broken(b.Last, "differs from the signed segment %d to %d: one of its records was changed", b.First, b.Last)
	}
	c.segEnd = Head{Writer: c.writer, Seq: b.Last, Hash: b.Head}
	c.report.Signed = b.Last
	return nil
}

// skip moves over a segment whose records are not there.
func (c *track) skip(b segmentBody) error {
	if c.seq != b.First-1 || c.hash != b.Prev {
		return c.broken(c.seq+1, "records overlap the dropped segment %d to %d", b.First, b.Last)
	}
	if want, ok := c.remembered[b.Last]; ok && want != b.Head {
		return c.broken(b.Last, "differs from the head that was remembered")
	}
	c.seq, c.hash = b.Last, b.Head
	if b.Gap {
		c.report.Missing += b.Last - b.First + 1
	} else {
		c.report.Dropped += b.Last - b.First + 1
	}
	return nil
}

// end checks that the chain reaches to what is remembered.
func (c *track) end() error {
	c.report.Writer, c.report.Head = c.writer, Head{Writer: c.writer, Seq: c.seq, Hash: c.hash}
	if len(c.remembered) == 0 {
		return c.allSigned()
	}
	if last := slices.Max(slices.Collect(maps.Keys(c.remembered))); last > c.seq {
		return c.broken(c.seq+1, "missing: records up to %d were remembered, the tail was cut", last)
	}
	return c.allSigned()
}

// verification holds all chains of one run.
type verification struct {
	trust      Trust
	remembered map[string]map[uint64]Hash
	report     Report
	done       map[string]bool
}

func newVerification(trust Trust) *verification {
	v := &verification{trust: trust, remembered: make(map[string]map[uint64]Hash), done: make(map[string]bool)}
	for _, h := range trust.Remembered {
		if v.remembered[h.Writer] == nil {
			v.remembered[h.Writer] = make(map[uint64]Hash)
		}
		v.remembered[h.Writer][h.Seq] = h.Hash
	}
	return v
}

func (v *verification) track(writer string) *track {
	c := &track{writer: writer, segEnd: Head{Writer: writer}, remembered: v.remembered[writer]}
	c.report.Connector = isConnector(writer)
	if c.key, c.pinned = v.trust.Pinned[ids.ConnectorID(writer)]; !c.pinned {
		c.key = v.trust.Registered[ids.ConnectorID(writer)]
	}
	return c
}

// close adds the result of one chain; err is nil or where it broke.
func (v *verification) close(c *track, err error) error {
	v.done[c.writer] = true
	if end := c.end(); err == nil {
		err = end
	}
	v.report.Records += c.report.Records
	v.report.Writers = append(v.report.Writers, c.report)
	var b *Break
	if errors.As(err, &b) {
		v.report.Breaks = append(v.report.Breaks, b)
		return nil
	}
	return err
}

// finish adds the writers that are remembered or pinned and not there at all.
func (v *verification) finish() Report {
	expected := slices.Collect(maps.Keys(v.remembered))
	for id := range v.trust.Pinned {
		expected = append(expected, string(id))
	}
	slices.Sort(expected)
	for _, writer := range expected {
		if !v.done[writer] {
			_ = v.close(v.track(writer), nil) // only breaks can come
		}
	}
	return v.report
}

// Verify checks all chains of the store: hashes, order, signatures of brokers and connectors,
// and that the heads that others remembered are still there. It returns an error only when
// the store cannot be read.
func (l *Log) Verify(ctx context.Context, trust Trust) (Report, error) {
	heads, err := l.cfg.Store.AuditHeads(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("verify audit: %w", err)
	}
	v := newVerification(trust)
	for _, head := range heads {
		c := v.track(head.Writer)
		err := l.verifyChain(ctx, c, trust.Keys, head)
		if err := v.close(c, err); err != nil {
			return Report{}, fmt.Errorf("verify audit of %s: %w", head.Writer, err)
		}
	}
	return v.finish(), nil
}

// verifyChain walks over segments and rows up to head, which was read before.
func (l *Log) verifyChain(ctx context.Context, c *track, trusted seal.Keys, head Head) error {
	err := l.walk(ctx, head, steps{
		row:       c.row,
		segment:   func(s Segment) error { return c.segment(trusted, s.Signed, !s.Dropped) },
		connector: func(h ConnectorHead) error { return c.connectorHead(h.Signed) },
	})
	if err != nil {
		return err
	}
	if c.seq != head.Seq || c.hash != head.Hash {
		return c.broken(c.seq+1, "missing: the store's own head is %d", head.Seq)
	}
	return nil
}

// steps are called on a walk over one chain.
type steps struct {
	row     func(Row) error
	segment func(Segment) error
	// connector takes a signed head after the last record that it covers.
	connector func(ConnectorHead) error
}

// walk calls step.row for all present records up to head, and the others after what they cover.
func (l *Log) walk(ctx context.Context, head Head, step steps) error {
	segs, err := l.cfg.Store.AuditSegments(ctx, head.Writer)
	if err != nil {
		return err
	}
	w := walker{log: l, steps: step, heads: l.signedHeads(head.Writer), writer: head.Writer}
	for _, s := range segs {
		if s.Last > head.Seq {
			break
		}
		if err := w.toSegment(ctx, s); err != nil {
			return err
		}
	}
	return w.rows(ctx, head.Seq)
}

// walker is the place of one walk.
type walker struct {
	steps
	log    *Log
	heads  *signedHeads
	writer string
	at     uint64
}

func (w *walker) toSegment(ctx context.Context, s Segment) error {
	if !s.Dropped {
		if err := w.rows(ctx, s.Last); err != nil {
			return err
		}
		return w.segment(s)
	}
	w.at = s.Last
	if err := w.segment(s); err != nil {
		return err
	}
	return w.signed(ctx, s.Last)
}

// rows calls row for the records after at, up to last.
func (w *walker) rows(ctx context.Context, last uint64) error {
	for w.at < last {
		rows, err := w.log.cfg.Store.AuditRows(ctx, w.writer, w.at, int(min(verifyPage, last-w.at)))
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.Seq > last {
				break
			}
			w.at = r.Seq
			if err := w.take(ctx, r); err != nil {
				return err
			}
		}
		if len(rows) == 0 || rows[len(rows)-1].Seq > last {
			break
		}
	}
	w.at = last
	return nil
}

func (w *walker) take(ctx context.Context, r Row) error {
	if err := w.row(r); err != nil {
		return err
	}
	return w.signed(ctx, r.Seq)
}

// signed calls connector for the head that ends at record seq, if there is one.
func (w *walker) signed(ctx context.Context, seq uint64) error {
	h, ok, err := w.heads.at(ctx, seq)
	if err != nil || !ok {
		return err
	}
	return w.connector(h)
}
