package controlapi

import (
	"context"
	"slices"
	"time"

	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/push"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/tickets"
	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/ticket"
)

// maxHandles bounds the handles of one message to a relay.
const maxHandles = 4096

// CutLinks ends links at the relays (decisions rule 9). Where no grant is left the tickets
// of before the revocation are void too, until a decision gives a newer one. Where the
// connector has not acknowledged but other grants are left, the link only ends: its tickets
// serve those grants.
func (a *API) CutLinks(ctx context.Context, list []authorize.Ended) {
	ctx, cancel := context.WithTimeout(ctx, cutTimeout)
	defer cancel()
	relays, err := a.cfg.Registry.Relays(ctx)
	if err != nil {
		a.log.ErrorContext(ctx, "links not cut", "error", err)
		return
	}
	ended := cut{handles: map[ids.RelayID][]uint64{}, at: a.cfg.Now()}
	void := voidLinks{API: a, relays: relays, at: map[time.Time]cut{}}
	for _, e := range list {
		silent := a.cfg.Ledger.Unacknowledged(e.Sequence)
		for _, id := range e.Connectors {
			switch con, err := a.cfg.Registry.Connector(ctx, id); {
			case err != nil:
			case !a.linkInUse(e.Grant.PeerKey, id):
				void.add(e.Grant.PeerKey, con.Identity.Key, e.At)
			case slices.Contains(silent, id):
				a.addLink(ended, relays, e.Grant.PeerKey, con.Identity.Key)
			}
		}
	}
	if len(ended.handles) > 0 {
		a.cut(ended)
	}
	for _, c := range void.at {
		a.cut(c)
	}
}

// linkInUse reports whether a live grant of the device names the connector.
func (a *API) linkInUse(device ids.KeyID, id ids.ConnectorID) bool {
	for _, g := range a.cfg.Ledger.Matching(grants.Device(device)) {
		if slices.Contains(g.Connectors, id) {
			return true
		}
	}
	return false
}

// addLink names the link of a device and a connector in c.
func (a *API) addLink(c cut, relays []registry.Relay, device, connector ids.KeyID) {
	for _, r := range relays {
		c.handles[r.ID] = append(c.handles[r.ID], uint64(a.cfg.Tickets.LinkHandle(r.ID, device, connector)))
	}
}

// voidLinks gathers links on which no grant is left, by the second of their revocation:
// tickets are of whole seconds.
type voidLinks struct {
	*API
	relays []registry.Relay
	at     map[time.Time]cut
}

func (v *voidLinks) add(device, connector ids.KeyID, at time.Time) {
	at = at.Truncate(time.Second)
	c, ok := v.at[at]
	if !ok {
		c = cut{handles: map[ids.RelayID][]uint64{}, at: at, void: true}
		v.at[at] = c
	}
	v.addLink(c, v.relays, device, connector)
}

// cut tells the relay inside this broker and those of their own process.
func (a *API) cut(c cut) {
	a.cutBuiltin(c)
	a.cuts.add(c)
	a.relays.MarkAll(push.Cuts)
}

func (a *API) cutBuiltin(c cut) {
	if a.cfg.Relay == nil {
		return
	}
	var hs []ticket.Handle
	for _, h := range c.handles[a.cfg.BuiltinRelay] {
		hs = append(hs, ticket.Handle(h))
	}
	rv := relay.Revocation{At: c.at}
	if c.void {
		rv.Handles = hs
	} else {
		a.cfg.Relay.Cut(hs...)
	}
	for _, k := range c.holders {
		rv.Holders = append(rv.Holders, ids.KeyID(k))
	}
	if len(rv.Holders)+len(rv.Handles) > 0 {
		a.cfg.Relay.Revoke(rv)
	}
}

// standingCuts are the void links of a relay from what is durable: the revocations whose
// links still have no grant and whose tickets could still be used. Links with a grant are
// left out, for their holders may stand on the tickets of before.
func (a *API) standingCuts(ctx context.Context, id ids.RelayID) ([]cut, error) {
	revoked, err := a.cfg.Ledger.RevokedSince(ctx, a.cfg.Now().Add(-tickets.Life))
	if err != nil {
		return nil, err
	}
	void := voidLinks{API: a, relays: []registry.Relay{{ID: id}}, at: map[time.Time]cut{}}
	keys := map[ids.ConnectorID]*ids.KeyID{}
	for _, r := range revoked {
		for _, con := range r.Grant.Connectors {
			if key := a.connectorKey(ctx, keys, con); key != nil && !a.linkInUse(r.Grant.PeerKey, con) {
				void.add(r.Grant.PeerKey, *key, r.At)
			}
		}
	}
	var out []cut
	for _, c := range void.at {
		out = append(out, c)
	}
	return out, nil
}

// connectorKey reads a connector's key once; nil for one that is gone, whose links nobody
// answers.
func (a *API) connectorKey(ctx context.Context, known map[ids.ConnectorID]*ids.KeyID, id ids.ConnectorID) *ids.KeyID {
	key, ok := known[id]
	if !ok {
		if con, err := a.cfg.Registry.Connector(ctx, id); err == nil {
			key = &con.Identity.Key
		}
		known[id] = key
	}
	return key
}

// RepeatCuts tells the relay inside this broker what it knew before the broker restarted.
func (a *API) RepeatCuts(ctx context.Context) error {
	if a.cfg.Relay == nil {
		return nil
	}
	list, err := a.standingCuts(ctx, a.cfg.BuiltinRelay)
	for _, c := range list {
		a.cutBuiltin(c)
	}
	return err
}
