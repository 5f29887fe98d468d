package grants

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// TopicRevocation is the topic of the change events that the store writes with each
// revocation; the key is its sequence.
const TopicRevocation = "revocation"

const (
	// DefaultLease is how far ahead a statement lets grants hold (decisions rule 7).
	DefaultLease = 60 * time.Second
	// DefaultMaxGrant is the longest time from issue to hard end. Revocations are kept as
	// long, so a shorter one keeps the list short.
	DefaultMaxGrant = 24 * time.Hour
	// tick is the resolution of times on the wire and in the store.
	tick = time.Millisecond
)

// Store keeps grants and revocations. broker/store implements it on both engines. Errors
// satisfy errors.Is with those of this package.
type Store interface {
	// InsertGrant is durable when it returns nil.
	InsertGrant(ctx context.Context, g Grant) error
	// SetReEvaluate stores when a grant is to be decided again.
	SetReEvaluate(ctx context.Context, id ids.GrantID, at time.Time) error
	// LiveGrants lists the grants in state live whose hard end lies after now.
	LiveGrants(ctx context.Context, now time.Time) ([]Grant, error)
	// RevokedGrants lists the grants that a revocation has ended after since.
	RevokedGrants(ctx context.Context, since time.Time) ([]RevokedGrant, error)
	// Grant returns a grant in any state, for people.
	Grant(ctx context.Context, id ids.GrantID) (Grant, error)
	// SaveRevocations stores the revocations and marks the grants they end, in one
	// transaction. One that is stored already is applied once more; ErrConflict if its
	// sequence belongs to another.
	SaveRevocations(ctx context.Context, list []Revocation) error
	// Revocations lists what is stored in ascending sequence, and the highest sequence ever.
	Revocations(ctx context.Context) (list []Revocation, last uint64, err error)
	// TidyGrants marks grants past their hard end as expired, forgets revocations kept until
	// before now, and forgets grants that ended before forget.
	TidyGrants(ctx context.Context, now, forget time.Time) error
	// SaveAssignment returns the version of an assignment with this digest: the stored one
	// if the digest is the same, else the next.
	SaveAssignment(ctx context.Context, id ids.ConnectorID, digest []byte) (uint64, error)
}

// Config is what a Ledger needs. Store, Signer and Log are required.
type Config struct {
	Store  Store
	Signer *seal.Signer
	// Lease is how long a statement lets grants hold. Zero means DefaultLease.
	Lease time.Duration
	// MaxGrant is the longest life of a grant. Zero means DefaultMaxGrant.
	MaxGrant time.Duration
	// Now is the clock of Run. Nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Ledger holds all live grants in memory, indexed, and the revocations that still matter.
type Ledger struct {
	cfg Config
	log *slog.Logger
	// kick wakes Run; one slot, because one wake-up flushes everything.
	kick chan struct{}
	// flush is held while the queue is written, so that the order of the list is kept.
	flush sync.Mutex

	mu    sync.Mutex // guards all below
	epoch uint64
	index index
	// revs are the revocations that are kept, in ascending sequence.
	revs []*Revocation
	last uint64 // highest sequence given
	// loaded is what last was after Load, without what connectors said.
	loaded uint64
	// pruned is the highest sequence that was forgotten.
	pruned uint64
	// issued is the latest Issued that was given.
	issued time.Time
	queue  []*Revocation // not durable yet
	peers  map[ids.ConnectorID]*peer
}

// New returns an empty Ledger; call Load before use.
func New(cfg Config) (*Ledger, error) {
	if cfg.Store == nil || cfg.Signer == nil || cfg.Log == nil {
		return nil, errors.New("grants: Config.Store, Signer and Log are required")
	}
	if cfg.Lease == 0 {
		cfg.Lease = DefaultLease
	}
	if cfg.MaxGrant == 0 {
		cfg.MaxGrant = DefaultMaxGrant
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Ledger{
		cfg: cfg, log: cfg.Log.With("component", "grants"), kick: make(chan struct{}, 1),
		index: newIndex(), peers: map[ids.ConnectorID]*peer{},
	}, nil
}

// Load takes over what the store holds: at the start, after a restore (with the new epoch)
// and when another broker changed it. What is in memory and not in the store stays.
func (l *Ledger) Load(ctx context.Context, epoch uint64, now time.Time) error {
	revs, last, err := l.cfg.Store.Revocations(ctx)
	if err != nil {
		return fmt.Errorf("load revocations: %w", err)
	}
	live, err := l.cfg.Store.LiveGrants(ctx, now)
	if err != nil {
		return fmt.Errorf("load grants: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch, l.loaded = epoch, max(last, clockSequence(now))
	l.last = max(l.last, l.loaded)
	l.mergeLocked(revs)
	for i := range live {
		l.addLocked(&live[i])
	}
	return nil
}

// mergeLocked adds revocations that are new here and applies them.
func (l *Ledger) mergeLocked(list []Revocation) {
	for i := range list {
		at, known := slices.BinarySearchFunc(l.revs, list[i].Sequence, bySequence)
		if known {
			continue
		}
		l.revs = slices.Insert(l.revs, at, &list[i])
		l.index.take(list[i].Target, list[i].At)
	}
}

func bySequence(r *Revocation, seq uint64) int {
	switch {
	case r.Sequence < seq:
		return -1
	case r.Sequence > seq:
		return 1
	default:
		return 0
	}
}

// addLocked puts a grant into the index unless a revocation ends it; it reports which one.
func (l *Ledger) addLocked(g *Grant) *Revocation {
	for _, r := range l.revs {
		if r.ends(g) {
			return r
		}
	}
	if g.Issued.After(l.issued) {
		l.issued = g.Issued
	}
	l.index.add(g)
	return nil
}

// Sequence returns the highest revocation sequence. Read it before a decision begins, and
// pass it to Issue.
func (l *Ledger) Sequence() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Issue stores a grant and returns it with its signed envelope. The caller fills everything
// but ID, Issued and State; since is the Sequence from before the decision. After ErrRevoked
// the caller decides again. No error but a nil one gives anybody anything.
func (l *Ledger) Issue(ctx context.Context, g Grant, since uint64, now time.Time) (*Grant, []byte, error) {
	if err := g.check(now, l.cfg.MaxGrant); err != nil {
		return nil, nil, err
	}
	g.ID, g.State = ids.New[ids.GrantID](), Live
	g.HardEnd = g.HardEnd.Truncate(tick)
	if err := l.stamp(&g, since, now); err != nil {
		return nil, nil, err
	}
	if err := l.cfg.Store.InsertGrant(ctx, g); err != nil {
		return nil, nil, fmt.Errorf("store grant: %w", err)
	}
	if err := l.admit(&g, since); err != nil {
		return nil, nil, err
	}
	return &g, l.Envelope(&g), nil
}

// stamp gives the grant its time of issue: after each revocation that names it.
func (l *Ledger) stamp(g *Grant, since uint64, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.crossedLocked(g, since) != nil || since < l.pruned {
		return ErrRevoked
	}
	g.Issued = now.UTC().Truncate(tick)
	for _, r := range l.revs {
		if r.ends(g) {
			g.Issued = r.At.Add(tick)
		}
	}
	if !g.HardEnd.After(g.Issued) {
		return fmt.Errorf("%w: it ends before it begins", ErrInvalid)
	}
	if g.Issued.After(l.issued) {
		l.issued = g.Issued
	}
	return nil
}

// admit puts a durable grant into the index, unless a revocation came while it was written:
// then that revocation is stored once more, so that it also reaches the row.
func (l *Ledger) admit(g *Grant, since uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.crossedLocked(g, since); r != nil {
		l.enqueueLocked(r)
		return ErrRevoked
	}
	if r := l.addLocked(g); r != nil {
		l.enqueueLocked(r)
		return ErrRevoked
	}
	return nil
}

// crossedLocked returns a revocation after since that names the grant.
func (l *Ledger) crossedLocked(g *Grant, since uint64) *Revocation {
	for i := len(l.revs) - 1; i >= 0 && l.revs[i].Sequence > since; i-- {
		if l.revs[i].Target.matches(g) {
			return l.revs[i]
		}
	}
	return nil
}

// Envelope signs a grant: the same bytes each time.
func (l *Ledger) Envelope(g *Grant) []byte { return grant.Seal(l.cfg.Signer, g.wire()) }

// Grant returns a live grant.
func (l *Ledger) Grant(id ids.GrantID) (*Grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.index.byID[id]
	if !ok {
		return nil, false
	}
	return e.g, true
}

// Matching returns the live grants that a target names, in no order.
func (l *Ledger) Matching(t Target) []*Grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.list(t)
}

// AtConnector returns the live grants that name a connector, in no order.
func (l *Ledger) AtConnector(id ids.ConnectorID) []*Grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.atConnector(id)
}

// Find returns the live grant of a session for an app, at most until now: asking twice must
// not give two grants.
func (l *Ledger) Find(s ids.SessionID, app ids.AppID, now time.Time) (*Grant, bool) {
	for _, g := range l.Matching(Session(s)) {
		if g.App == app && g.HardEnd.After(now) {
			return g, true
		}
	}
	return nil, false
}

// RevokedSince returns the stored grants that a revocation has ended after since: what a
// relay must hear again that has lost its memory.
func (l *Ledger) RevokedSince(ctx context.Context, since time.Time) ([]RevokedGrant, error) {
	return l.cfg.Store.RevokedGrants(ctx, since)
}

// Len returns how many grants are live.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.index.byID)
}
