package grants

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// maxFlush is how many revocations one transaction stores.
const maxFlush = 256

// Effect is what a revocation did: which grants it ended and which connectors must hear.
type Effect struct {
	Revocation
	Grants []*Grant
}

// Revoke ends all live grants that target names, at once. It never waits for the disk; call
// Flush to know that it is durable. It is recorded also when it ends nothing, because a
// decision may be on its way.
func (l *Ledger) Revoke(target Target, cause Cause, now time.Time) Effect {
	l.mu.Lock()
	r := l.recordLocked(target, cause, now)
	ended := l.index.take(target, r.At)
	r.Connectors = connectorsOf(ended)
	l.enqueueLocked(r)
	effect := Effect{Revocation: *r, Grants: ended}
	l.mu.Unlock()
	l.wake()
	return effect
}

// recordLocked appends the next revocation; its time is not before that of any grant.
func (l *Ledger) recordLocked(target Target, cause Cause, now time.Time) *Revocation {
	l.last = max(l.last+1, clockSequence(now))
	at := now.UTC().Truncate(tick)
	if at.Before(l.issued) {
		at = l.issued
	}
	r := &Revocation{Sequence: l.last, Target: target, Cause: cause, At: at, KeepUntil: at.Add(l.cfg.MaxGrant)}
	l.revs = append(l.revs, r)
	return r
}

// clockSequence is the lowest sequence for a moment. Sequences follow the clock, so that
// they go up over a restart also when the last ones before it never reached the disk:
// connectors remember the highest and refuse lower ones.
func clockSequence(now time.Time) uint64 { return uint64(max(now.UnixMilli(), 0)) }

// connectorsOf returns the connectors that the grants name, sorted.
func connectorsOf(list []*Grant) []ids.ConnectorID {
	seen := map[ids.ConnectorID]bool{}
	for _, g := range list {
		for _, c := range g.Connectors {
			seen[c] = true
		}
	}
	out := make([]ids.ConnectorID, 0, len(seen))
	for c := range seen {
		out = append(out, c)
	}
	slices.Sort(out)
	return out
}

func (l *Ledger) enqueueLocked(r *Revocation) { l.queue = append(l.queue, r) }

func (l *Ledger) wake() {
	select {
	case l.kick <- struct{}{}:
	default: // Run is woken already
	}
}

// Flush stores all queued revocations. When it returns nil, each Revoke that returned before
// the call is durable.
func (l *Ledger) Flush(ctx context.Context) error {
	l.flush.Lock()
	defer l.flush.Unlock()
	for {
		batch := l.head()
		if len(batch) == 0 {
			return nil
		}
		err := l.cfg.Store.SaveRevocations(ctx, batch)
		if errors.Is(err, ErrConflict) {
			err = l.renumber(ctx)
			batch = nil
		}
		if err != nil {
			return fmt.Errorf("store revocations: %w", err)
		}
		l.drop(len(batch))
	}
}

// head copies the front of the queue.
func (l *Ledger) head() []Revocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Revocation
	for _, r := range l.queue[:min(len(l.queue), maxFlush)] {
		out = append(out, *r)
	}
	return out
}

func (l *Ledger) drop(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = slices.Delete(l.queue, 0, n)
}

// renumber gives the queued revocations new sequences behind those that another broker
// stored meanwhile. Connectors that know one by its old number just apply it twice.
func (l *Ledger) renumber(ctx context.Context) error {
	stored, last, err := l.cfg.Store.Revocations(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = max(l.last, last)
	for _, r := range l.queue {
		l.revs = slices.DeleteFunc(l.revs, func(o *Revocation) bool { return o == r })
	}
	l.mergeLocked(stored)
	for i, r := range l.queue {
		l.last++
		moved := *r
		moved.Sequence = l.last
		l.queue[i] = &moved
		l.revs = append(l.revs, &moved)
	}
	return nil
}

// Queued returns how many revocations are not durable yet; readiness shows it.
func (l *Ledger) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// SetReEvaluate notes when a grant is to be decided again; the zero time is never.
func (l *Ledger) SetReEvaluate(ctx context.Context, id ids.GrantID, at time.Time) error {
	l.mu.Lock()
	e, ok := l.index.byID[id]
	if ok {
		next := *e.g
		next.ReEvaluateAt = at
		e.g = &next
	}
	l.mu.Unlock()
	if !ok {
		return ErrNotFound
	}
	return l.cfg.Store.SetReEvaluate(ctx, id, at)
}

// SetSource notes for which address the decision behind a grant holds by now.
func (l *Ledger) SetSource(id ids.GrantID, source netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.index.byID[id]; ok {
		next := *e.g
		next.Source = source
		e.g = &next
	}
}

// Due returns the live grants that are to be decided again at now, and when the next one is
// (zero: none).
func (l *Ledger) Due(now time.Time) (due []*Grant, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.index.byID {
		at := e.g.ReEvaluateAt
		switch {
		case at.IsZero():
		case !at.After(now):
			due = append(due, e.g)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return due, next
}
