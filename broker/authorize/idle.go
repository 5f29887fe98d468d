package authorize

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// idleEvery is how often grants are looked at for idleness; limits are minutes and hours.
	idleEvery = 5 * time.Second
	// reportWithin is how old a connector's last report may be: it reports with each
	// acknowledgement of a statement, every 15 s.
	reportWithin = time.Minute
)

// activity is when bytes last moved on grants that have an idle limit, as connectors report.
// A broker that has just started knows nothing, and counts from its start.
type activity struct {
	began, looked time.Time
	last          map[ids.GrantID]time.Time
	reported      map[ids.ConnectorID]time.Time
}

func newActivity() activity {
	return activity{last: map[ids.GrantID]time.Time{}, reported: map[ids.ConnectorID]time.Time{}}
}

// Active notes that a connector reports its activity, and on which grants something moved
// since its last report. A connector speaks only for grants that name it.
func (a *Authorizer) Active(c ids.ConnectorID, list []ids.GrantID) {
	now := a.cfg.Now()
	var named []ids.GrantID
	for _, id := range list {
		if g, ok := a.cfg.Ledger.Grant(id); ok && g.Idle > 0 && slices.Contains(g.Connectors, c) {
			named = append(named, id)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m := &a.activity
	m.reported[c] = now
	for _, id := range named {
		m.last[id] = now
	}
}

// endIdle ends the grants on which nothing has moved for as long as they allow.
func (a *Authorizer) endIdle(ctx context.Context) []Ended {
	now := a.cfg.Now()
	silent := a.silent(now)
	if len(silent) == 0 {
		return nil
	}
	cons, err := a.cfg.Sources.Connectors(ctx)
	if err != nil {
		a.log.WarnContext(ctx, "idle grants not ended", "error", err)
		return nil
	}
	heard := a.heardUntil(cons, now)
	var out []Ended
	for _, s := range silent {
		if s.until(heard, now).Sub(s.since) >= s.grant.Idle {
			out = append(out, a.end(s.grant, grants.CauseIdle, idleRecord(s.grant, now)))
		}
	}
	return out
}

// silence is a live grant of whose use nothing was heard since.
type silence struct {
	grant *grants.Grant
	since time.Time
}

// until is how far the silence is known to reach: to the oldest report of the grant's
// connectors.
func (s silence) until(heard map[ids.ConnectorID]time.Time, now time.Time) time.Time {
	for _, c := range s.grant.Connectors {
		if at, ok := heard[c]; ok && at.Before(now) {
			now = at
		}
	}
	return now
}

// silent returns the live grants of whose use nothing was heard for their idle limit; it
// forgets what is known of grants that have ended.
func (a *Authorizer) silent(now time.Time) []silence {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := &a.activity
	if m.began.IsZero() {
		m.began = now
	}
	if now.Sub(m.looked) < idleEvery {
		return nil
	}
	m.looked = now
	var out []silence
	kept := make(map[ids.GrantID]time.Time, len(m.last))
	for _, g := range a.cfg.Ledger.Matching(grants.Everything()) {
		last, known := m.last[g.ID]
		if known {
			kept[g.ID] = last
		}
		since := latest(last, g.Issued, m.began)
		if g.Idle > 0 && now.Sub(since) >= g.Idle {
			out = append(out, silence{g, since})
		}
	}
	m.last = kept
	return out
}

// heardUntil returns when connectors that may carry bytes were last heard of: the zero time
// for one that was seen lately, here or at another broker, and does not report here, as one
// that is older than the reports. Connectors that nobody has seen lately are left out.
func (a *Authorizer) heardUntil(cons []registry.Connector, now time.Time) map[ids.ConnectorID]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[ids.ConnectorID]time.Time)
	for _, c := range cons {
		at := a.activity.reported[c.ID]
		switch {
		case now.Sub(at) <= reportWithin:
			out[c.ID] = at
		case now.Sub(c.Seen.Last) <= reportWithin:
			out[c.ID] = time.Time{}
		}
	}
	return out
}

func latest(first time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if t.After(first) {
			first = t
		}
	}
	return first
}

// idleRecord is what the employee is told; the receipt is that of the grant that has ended.
func idleRecord(g *grants.Grant, now time.Time) policy.Record {
	return policy.Record{
		Receipt: g.Receipt, Time: now, User: g.User, Device: g.Device, Session: g.Session, App: g.App,
		Decision: policy.RefuseWith(now, policy.Reason{
			Code: policy.CodeIdle, Detail: map[string]string{"limit": readable(g.Idle)},
		}),
	}
}

// readable drops the zero parts of a duration: "2h", not "2h0m0s".
func readable(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
