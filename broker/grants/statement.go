package grants

import (
	"slices"
	"time"

	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// maxListed is how many revocations one statement carries: 700 of at most 90 bytes fit
	// into an envelope of 64 KiB.
	maxListed = 700
	// maxRaise bounds how far ahead of the clock a connector may raise our sequence.
	// Sequences follow the clock, so this is a quarter of an hour by which it went back.
	maxRaise = 1 << 20
)

// peer is what the ledger knows of one connector.
type peer struct {
	acked    uint64    // revocations that the connector holds
	sequence uint64    // of the last statement
	promised time.Time // Until of the last complete statement since it attached
}

// Applied is what a connector says it holds when it attaches: the epoch, the highest
// statement sequence it saw and the revocations that it has in memory, all of them up to
// Revoked. A connector that lost its list says 0.
type Applied struct {
	Epoch     uint64
	Statement uint64
	Revoked   uint64
}

// Attach begins the statements to a connector anew from what it holds. If it knows a higher
// sequence than the ledger, because a clock went back over a restart, the ledger goes on from
// there: a connector refuses lower numbers. The bound is to the clock and not to the ledger's
// last, or one malicious connector could raise it step by step, and after a restart the
// other connectors would refuse every statement.
func (l *Ledger) Attach(id ids.ConnectorID, a Applied) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Epoch != l.epoch {
		a = Applied{}
	}
	if a.Revoked > l.last && a.Revoked <= max(l.loaded, clockSequence(l.cfg.Now()))+maxRaise {
		l.last = a.Revoked
	}
	sequence := max(a.Statement, l.peerLocked(id).sequence)
	l.peers[id] = &peer{acked: min(a.Revoked, l.last), sequence: sequence}
}

// Detach forgets a connector.
func (l *Ledger) Detach(id ids.ConnectorID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.peers, id)
}

// Acknowledge notes that a connector applied all revocations up to sequence.
func (l *Ledger) Acknowledge(id ids.ConnectorID, sequence uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peerLocked(id)
	p.acked = max(p.acked, min(sequence, l.last))
}

func (l *Ledger) peerLocked(id ids.ConnectorID) *peer {
	p, ok := l.peers[id]
	if !ok {
		p = &peer{}
		l.peers[id] = p
	}
	return p
}

// Unacknowledged returns the connectors that must hear of the revocation with this sequence
// and have not acknowledged it.
func (l *Ledger) Unacknowledged(sequence uint64) []ids.ConnectorID {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := slices.BinarySearchFunc(l.revs, sequence, bySequence)
	if !ok {
		return nil
	}
	var out []ids.ConnectorID
	for _, c := range l.revs[at].Connectors {
		if p := l.peers[c]; p == nil || p.acked < sequence {
			out = append(out, c)
		}
	}
	return out
}

// Statements returns the signed news to a connector, to be sent in this order: all grants
// issued to it hold for a lease, except those ended by the listed revocations, of which it
// hears only those that concern it. When they are too many for one message, those before the
// last repeat the promise made last and extend nothing, so that no lease runs on a list that
// is not complete.
func (l *Ledger) Statements(id ids.ConnectorID, now time.Time) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peerLocked(id)
	news := l.newsLocked(id, p.acked)
	from := p.acked
	var out [][]byte
	for len(news) > maxListed {
		part := news[:maxListed]
		news = news[maxListed:]
		st := l.statementLocked(id, p, now)
		st.From, st.Revoked, st.Revocations = from, part[maxListed-1].Sequence, part
		st.Until = later(p.promised, now.Add(tick))
		out = append(out, grant.SealStatement(l.cfg.Signer, st))
		from = st.Revoked
	}
	st := l.statementLocked(id, p, now)
	st.From, st.Revoked, st.Revocations = from, l.last, news
	st.Until = now.Add(l.cfg.Lease)
	p.promised = st.Until
	return append(out, grant.SealStatement(l.cfg.Signer, st))
}

// statementLocked returns a statement with the next sequence.
func (l *Ledger) statementLocked(id ids.ConnectorID, p *peer, now time.Time) *grant.Statement {
	p.sequence = max(p.sequence+1, clockSequence(now))
	return &grant.Statement{
		Connector: id, Epoch: l.epoch, Sequence: p.sequence, Time: now, VoidBefore: l.voidLocked(),
	}
}

// newsLocked returns the revocations after acked that concern the connector, in ascending
// sequence. Of several with one target the last covers the others.
func (l *Ledger) newsLocked(id ids.ConnectorID, acked uint64) []grant.Revocation {
	var out []grant.Revocation
	covered := map[Target]time.Time{}
	first, _ := slices.BinarySearchFunc(l.revs, acked+1, bySequence)
	for _, r := range slices.Backward(l.revs[first:]) {
		_, concerned := slices.BinarySearch(r.Connectors, id)
		until, again := covered[r.Target]
		if !concerned || r.Target.Kind == everything || (again && !r.At.After(until)) {
			continue
		}
		covered[r.Target] = r.At
		out = append(out, r.wire())
	}
	slices.Reverse(out)
	return out
}

// voidLocked returns the time before which each grant is void: behind the last revocation of
// everything.
func (l *Ledger) voidLocked() time.Time {
	for i := len(l.revs) - 1; i >= 0; i-- {
		if l.revs[i].Target.Kind == everything {
			return l.revs[i].At.Add(tick)
		}
	}
	return time.Time{}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
