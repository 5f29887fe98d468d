package controlapi

import (
	"context"
	"sync"
	"time"

	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

var _ authorize.Listener = (*API)(nil)

// cutTimeout bounds the look-ups behind a cut.
const cutTimeout = 5 * time.Second

// GrantsEnded tells the connectors and the devices of ended grants.
func (a *API) GrantsEnded(list []authorize.Ended) {
	a.latency.revoked(a.cfg.Ledger.Sequence(), a.cfg.Now())
	for _, e := range list {
		for _, c := range e.Connectors {
			a.connectors.Mark(c, push.Statement)
		}
		a.devices.Mark(e.Grant.Device, push.Grants|push.Catalog)
	}
}

// GrantsEndedBy tells everybody of the effect of one revocation.
func (a *API) GrantsEndedBy(fx grants.Effect) {
	a.latency.revoked(fx.Sequence, a.cfg.Now())
	for _, c := range fx.Connectors {
		a.connectors.Mark(c, push.Statement)
	}
	for _, g := range fx.Grants {
		a.devices.Mark(g.Device, push.Grants|push.Catalog)
	}
}

// CatalogChanged tells everybody that apps are new.
func (a *API) CatalogChanged() {
	a.connectors.MarkAll(push.Assignment)
	a.devices.MarkAll(push.Catalog)
}

// PolicyChanged tells devices that what they may do is new.
func (a *API) PolicyChanged() { a.devices.MarkAll(push.Catalog) }

// UserChanged tells the devices: the user's sessions and groups are new.
func (a *API) UserChanged(ids.UserID) { a.devices.MarkAll(push.Session | push.Catalog) }

// SessionChanged tells the devices that a session began or ended.
func (a *API) SessionChanged(ctx context.Context, id ids.SessionID) {
	ctx, cancel := context.WithTimeout(ctx, cutTimeout)
	defer cancel()
	if ses, err := a.cfg.Sessions.Session(ctx, id); err == nil {
		a.devices.Mark(ses.Device, push.Session)
		return
	}
	a.devices.MarkAll(push.Session)
}

// DeviceChanged wakes the device's stream, which ends if the device is blocked.
func (a *API) DeviceChanged(id ids.DeviceID) { a.devices.Mark(id, push.Session) }

// CutDevice has the relays refuse the tickets of a device that is blocked or removed: they
// live longer than its grants.
func (a *API) CutDevice(ctx context.Context, id ids.DeviceID) {
	d, err := a.cfg.Registry.Device(ctx, id)
	if err == nil && d.Usable() != nil {
		a.cut(cut{holders: [][]byte{d.Identity.Key[:]}, at: a.cfg.Now()})
	}
}

// ConnectorChanged wakes the connector's stream, which ends if it is blocked, and tells
// devices, for their grants may name it.
func (a *API) ConnectorChanged(id ids.ConnectorID) {
	a.connectors.Mark(id, push.Assignment|push.Statement)
	a.devices.MarkAll(push.Catalog)
}

// RelaysChanged gives connectors new tickets and devices new relays.
func (a *API) RelaysChanged() {
	a.connectors.MarkAll(push.Relays)
	a.devices.MarkAll(push.Catalog)
	a.relays.MarkAll(push.Cuts)
}

// SessionsEnded revokes the grants of sessions that have ended by themselves.
func (a *API) SessionsEnded(list []session.Session) {
	for _, s := range list {
		a.GrantsEndedBy(a.cfg.Authorize.Revoke(grants.Session(s.ID), grants.CauseSessionEnded, ""))
		a.devices.Mark(s.Device, push.Session)
	}
}

// acknowledgement latencies are kept for revocations that nobody has acknowledged yet.
const maxLatencies = 4096

// latencies measures from a revocation to the first acknowledgement that covers it.
type latencies struct {
	mu   sync.Mutex
	list []revokedAt
}

type revokedAt struct {
	seq uint64
	at  time.Time
}

func (l *latencies) revoked(seq uint64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) < maxLatencies {
		l.list = append(l.list, revokedAt{seq, at})
	}
}

func (l *latencies) acknowledged(seq uint64, now time.Time, seen func(time.Duration)) {
	l.mu.Lock()
	var done []revokedAt
	keep := l.list[:0]
	for _, r := range l.list {
		if r.seq <= seq {
			done = append(done, r)
		} else {
			keep = append(keep, r)
		}
	}
	l.list = keep
	l.mu.Unlock()
	for _, r := range done {
		seen(now.Sub(r.at))
	}
}
