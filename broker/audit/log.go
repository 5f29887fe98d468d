package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

const (
	// maxGroup is how many records one transaction takes.
	maxGroup = 256
	// writeTimeout bounds one transaction, for all who wait for it.
	writeTimeout = 10 * time.Second
)

// Store is what the log needs from the database.
type Store interface {
	// InTransaction reports whether ctx is joined to a transaction of the store.
	InTransaction(ctx context.Context) bool
	// AppendAudit calls build inside a writing transaction with the head of writer (Seq 0 for
	// a new one) and appends the rows that it returns; durable before it returns, unless the
	// transaction is the caller's.
	AppendAudit(ctx context.Context, writer string, build func(ctx context.Context, head Head) ([]Row, error)) error
	// AuditHeads returns the head of each writer.
	AuditHeads(ctx context.Context) ([]Head, error)
	// AuditHead returns the head of one writer, with Seq 0 when it wrote nothing.
	AuditHead(ctx context.Context, writer string) (Head, error)
	// AuditRows returns up to limit rows of writer with a number above after, in order.
	AuditRows(ctx context.Context, writer string, after uint64, limit int) ([]Row, error)
	// SearchAudit returns the rows that match q, newest first, at most q.Limit.
	SearchAudit(ctx context.Context, q Query) ([]Row, error)
	// AuditSegments returns all segments of writer, in order.
	AuditSegments(ctx context.Context, writer string) ([]Segment, error)
	// LastAuditSegment returns the last segment of writer, zero when there is none.
	LastAuditSegment(ctx context.Context, writer string) (Segment, error)
	// AddAuditSegment stores a segment unless one begins at the same record.
	AddAuditSegment(ctx context.Context, s Segment) error
	// ConnectorHeads returns up to limit signed heads of writer that end after record after,
	// in order.
	ConnectorHeads(ctx context.Context, writer string, after uint64, limit int) ([]ConnectorHead, error)
	// AddConnectorHead stores a signed head unless one ends at the same record.
	AddConnectorHead(ctx context.Context, h ConnectorHead) error
	// DropAudit deletes the rows of writer up to through, and the signed heads before it, and
	// marks their segments.
	DropAudit(ctx context.Context, writer string, through uint64) (rows int64, err error)
	// PersonKey returns the newest key for user, zero when there is none.
	PersonKey(ctx context.Context, user ids.UserID) (PersonKey, error)
	// PersonKeyByID returns one key, zero when there is none.
	PersonKeyByID(ctx context.Context, id string) (PersonKey, error)
	// AddPersonKey stores a key.
	AddPersonKey(ctx context.Context, k PersonKey) error
	// ErasePerson deletes all keys of user.
	ErasePerson(ctx context.Context, user ids.UserID) error
}

// Sealer seals the per-user keys; keys.DataBox is one.
type Sealer interface {
	Seal(context string, secret []byte) string
	Open(context, sealed string) ([]byte, error)
}

// Config of a Log. All fields without a zero meaning are required.
type Config struct {
	Store  Store
	Broker ids.BrokerID
	// Signer signs segments: the broker's signing key.
	Signer *seal.Signer
	Sealer Sealer
	Log    *slog.Logger
	// QueueLen bounds the best-effort records that wait for the disk. Zero means 4096.
	QueueLen int
	// SegmentRecords and SegmentEvery say when a segment is signed: at so many records, or
	// when its first one is so old. Zero means 1024 and 10 minutes.
	SegmentRecords int
	SegmentEvery   time.Duration
}

// Log is the audit of one broker: it writes the broker's own chain and takes in those of
// the connectors.
type Log struct {
	cfg    Config
	writer string
	log    *slog.Logger

	mu      sync.Mutex
	waiting []*pending // guarded by mu: appends that wait for a leader
	leading bool       // guarded by mu: one of the appenders writes

	best bestEffort
}

// Ref names a record that was written.
type Ref struct {
	Writer string
	Seq    uint64
	Hash   Hash
}

// New checks cfg; Run does the rest.
func New(cfg Config) (*Log, error) {
	if cfg.Store == nil || cfg.Broker == "" || cfg.Signer == nil || cfg.Sealer == nil || cfg.Log == nil {
		return nil, errors.New("audit: Store, Broker, Signer, Sealer and Log are required")
	}
	cfg.QueueLen = orDefault(cfg.QueueLen, defaultQueue)
	cfg.SegmentRecords = orDefault(cfg.SegmentRecords, defaultSegmentRecords)
	cfg.SegmentEvery = orDefault(cfg.SegmentEvery, defaultSegmentEvery)
	l := &Log{cfg: cfg, writer: string(cfg.Broker), log: cfg.Log.With("component", "audit")}
	l.best = newBestEffort(cfg.QueueLen)
	return l, nil
}

func orDefault[T int | time.Duration](v, zero T) T {
	if v == 0 {
		return zero
	}
	return v
}

// pending is one append on its way.
type pending struct {
	ev      Event
	ref     Ref
	err     error
	done    chan struct{}
	promote chan struct{} // closed when this appender has to lead
}

// Append writes ev to the broker's chain; it is on disk when Append returns nil. When it
// fails, what it records must not happen. Appends at the same time share a transaction.
// With a ctx joined to a transaction (store.Tx.Context) the record becomes part of that.
func (l *Log) Append(ctx context.Context, ev Event) (Ref, error) {
	p := &pending{ev: ev, done: make(chan struct{}), promote: make(chan struct{})}
	if l.cfg.Store.InTransaction(ctx) {
		err := l.writeGroup(ctx, []*pending{p})
		return p.ref, err
	}
	if l.enqueue(p) {
		l.lead(ctx)
	}
	select { // the leader's write has a deadline
	case <-p.promote:
		l.lead(ctx)
		<-p.done
	case <-p.done:
	}
	return p.ref, p.err
}

// enqueue reports whether the caller has to lead.
func (l *Log) enqueue(p *pending) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, p)
	lead := !l.leading
	l.leading = true
	return lead
}

// lead writes one group, which holds the caller's own append, and hands leadership on.
func (l *Log) lead(ctx context.Context) {
	l.mu.Lock()
	n := min(len(l.waiting), maxGroup)
	group := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout) // it writes for others too
	defer cancel()
	err := l.writeGroup(ctx, group)
	for _, p := range group {
		p.err = err
		close(p.done)
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading = len(l.waiting) > 0; l.leading {
		close(l.waiting[0].promote)
	}
}

// writeGroup writes all of group in one transaction, or nothing.
func (l *Log) writeGroup(ctx context.Context, group []*pending) error {
	err := l.cfg.Store.AppendAudit(ctx, l.writer, func(ctx context.Context, head Head) ([]Row, error) {
		rows := make([]Row, 0, len(group))
		for _, p := range group {
			row, err := l.next(ctx, head, p.ev)
			if err != nil {
				return nil, err
			}
			head = Head{Writer: l.writer, Seq: row.Seq, Hash: row.Hash}
			p.ref = Ref(head)
			rows = append(rows, row)
		}
		return rows, nil
	})
	if err != nil {
		return fmt.Errorf("append audit: %w", err)
	}
	return nil
}

// next makes the row after head.
func (l *Log) next(ctx context.Context, head Head, ev Event) (Row, error) {
	r := Record{V: chain.Version, Writer: l.writer, Seq: head.Seq + 1, TimeMS: time.Now().UnixMilli(), Prev: head.Hash, Event: ev}
	if err := l.sealPersonal(ctx, &r); err != nil {
		return Row{}, err
	}
	line, err := chain.Encode(r)
	if err != nil {
		return Row{}, err
	}
	if r, err = ParseLine(line); err != nil { // the limits hold for our own records too
		return Row{}, err
	}
	return rowOf(r, line), nil
}

// Head returns the end of a writer's chain, to be remembered by others.
func (l *Log) Head(ctx context.Context, writer string) (Head, error) {
	return l.cfg.Store.AuditHead(ctx, writer)
}

// Own returns the end of this broker's chain.
func (l *Log) Own(ctx context.Context) (Head, error) { return l.Head(ctx, l.writer) }

// Recall answers somebody who remembers a record of a broker's chain: with its hash, or that
// it was archived. The zero hash says that it is not there.
func (l *Log) Recall(ctx context.Context, writer string, seq uint64) (h Head, archived bool, err error) {
	h = Head{Writer: writer, Seq: seq}
	if _, err := ids.Parse[ids.BrokerID](writer); err != nil || seq == 0 || seq > 1<<62 {
		return h, false, nil //nolint:nilerr // nothing of that name is there, or it is nobody's business
	}
	rows, err := l.cfg.Store.AuditRows(ctx, writer, seq-1, 1)
	if err != nil {
		return h, false, fmt.Errorf("recall audit: %w", err)
	}
	if len(rows) > 0 && rows[0].Seq == seq {
		h.Hash = rows[0].Hash
		return h, false, nil
	}
	segs, err := l.cfg.Store.AuditSegments(ctx, writer)
	if err != nil {
		return h, false, fmt.Errorf("recall audit: %w", err)
	}
	for _, s := range segs {
		switch {
		case s.Last == seq:
			h.Hash = s.Head
			return h, false, nil
		case s.Dropped && s.First <= seq && seq < s.Last:
			return h, true, nil
		}
	}
	return h, false, nil
}

// Heads returns the ends of all chains.
func (l *Log) Heads(ctx context.Context) ([]Head, error) { return l.cfg.Store.AuditHeads(ctx) }
