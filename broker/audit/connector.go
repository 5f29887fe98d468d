package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// headsPage is how many signed heads are read at once.
const headsPage = 500

// ConnectorHead is what a connector signed over one shipment, as it rests in the store.
type ConnectorHead struct {
	Writer string
	First  uint64
	Last   uint64
	Signed []byte // envelope of chain.SignedHead
	At     time.Time
	hash   Hash // of record Last, known at ingest only
}

// openHead verifies the signature of a shipment before anything of it is parsed, and that it
// is over these records; nil for one that is not signed.
func (s Shipment) openHead() (*ConnectorHead, error) {
	if len(s.SignedHead) == 0 {
		return nil, nil // older connectors do not sign
	}
	h, err := chain.OpenSignedHead(s.Key, s.SignedHead)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if h.Connector != s.Connector || uint64(len(s.Records)) != h.Count || HashLine(s.Records[len(s.Records)-1]) != h.Hash {
		return nil, fmt.Errorf("%w: %d to %d of %s", ErrOtherRecords, h.First, h.Last, h.Connector)
	}
	return &ConnectorHead{Writer: string(h.Connector), First: h.First, Last: h.Last, Signed: s.SignedHead, At: time.Now(), hash: h.Hash}, nil
}

// covers checks that the signed range is that of the records; they are a chain, and the hash
// of the last one fits, so that it covers each of them.
func (h *ConnectorHead) covers(rows []shipped) error {
	if h == nil || rows[0].Seq == h.First && rows[len(rows)-1].Seq == h.Last && rows[len(rows)-1].Hash == h.hash {
		return nil
	}
	return fmt.Errorf("%w: %d to %d", ErrOtherRecords, h.First, h.Last)
}

// connectorHead takes what a connector signed over the records up to the present place.
func (c *track) connectorHead(signed []byte) error {
	claimed, err := seal.ClaimedIdentity(signed)
	if err != nil {
		return c.broken(c.seq, "the connector's signature: %v", err)
	}
	if c.key.IsZero() {
		c.key = claimed // shown for comparison
	}
	if claimed != c.key {
		return c.broken(c.seq, "signed with the key %s, and the connector's key is %s", claimed, c.key)
	}
	h, err := chain.OpenSignedHead(c.key, signed)
	switch {
	case err != nil:
		return c.broken(c.seq, "the connector's signature: %v", err)
	case string(h.Connector) != c.writer:
		return c.broken(c.seq, "the signature belongs to %s", h.Connector)
	case h.Last != c.seq || h.Hash != c.hash:
		return c.broken(h.Last, "differs from what the connector signed: one of its records was changed")
	}
	c.report.OwnSigned, c.report.OwnKey = h.Last, c.key.String()
	return nil
}

// allSigned checks that a connector with a pinned key signed all that is there.
func (c *track) allSigned() error {
	switch {
	case !c.pinned || c.report.OwnSigned == c.seq && c.seq > 0:
		return nil
	case c.seq == 0:
		return c.broken(1, "missing: nothing of this connector is there, and its key is pinned")
	default:
		return c.broken(c.report.OwnSigned+1, "not signed with the connector's key %s", c.key)
	}
}

// toConnectorHead cuts rows at the last place that their connector signed, if there is one:
// a segment that is archived then carries the connector's signature over all of it.
func (l *Log) toConnectorHead(ctx context.Context, rows []Row) ([]Row, error) {
	heads := l.signedHeads(rows[0].Writer)
	cut := len(rows)
	for i, row := range rows {
		_, ok, err := heads.at(ctx, row.Seq)
		if err != nil {
			return nil, err
		}
		if ok {
			cut = i + 1
		}
	}
	return rows[:cut], nil
}

// holds reports whether the store has the record that h ends at, as the connector signed it.
func (l *Log) holds(ctx context.Context, h ConnectorHead) (bool, error) {
	key, err := seal.ClaimedIdentity(h.Signed)
	if err != nil {
		return false, err
	}
	signed, err := chain.OpenSignedHead(key, h.Signed)
	if err != nil || string(signed.Connector) != h.Writer || signed.Last != h.Last {
		return false, err
	}
	rows, err := l.cfg.Store.AuditRows(ctx, h.Writer, h.Last-1, 1)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	return rows[0].Seq == h.Last && rows[0].Hash == signed.Hash, nil
}

// isConnector says whose chain it is.
func isConnector(writer string) bool {
	_, err := ids.Parse[ids.ConnectorID](writer)
	return err == nil
}

// signedHeads gives the signed heads of one chain beside a walk over its records.
type signedHeads struct {
	store  Store
	writer string
	page   []ConnectorHead
	after  uint64
	ended  bool
}

func (l *Log) signedHeads(writer string) *signedHeads {
	return &signedHeads{store: l.cfg.Store, writer: writer, ended: !isConnector(writer)}
}

// at returns the head that ends at record seq, if there is one. seq must grow; heads before
// it that were not asked for are those of archived records.
func (s *signedHeads) at(ctx context.Context, seq uint64) (ConnectorHead, bool, error) {
	for {
		for len(s.page) > 0 && s.page[0].Last < seq {
			s.page = s.page[1:]
		}
		if len(s.page) > 0 {
			return s.page[0], s.page[0].Last == seq, nil
		}
		if s.ended {
			return ConnectorHead{}, false, nil
		}
		if err := s.fill(ctx, seq); err != nil {
			return ConnectorHead{}, false, err
		}
	}
}

func (s *signedHeads) fill(ctx context.Context, seq uint64) (err error) {
	s.page, err = s.store.ConnectorHeads(ctx, s.writer, max(s.after, seq-1), headsPage)
	if n := len(s.page); n > 0 {
		s.after = s.page[n-1].Last
	}
	s.ended = len(s.page) < headsPage
	return err
}
