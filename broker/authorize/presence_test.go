package authorize

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

// sited is the world with connectors at the app's site, of which some are online.
type sited struct {
	*world
	a, b   registry.Connector
	online []ids.ConnectorID
}

func newSited(t *testing.T) *sited {
	w := &sited{world: newWorld(t)}
	app, _ := w.catalog.App(w.grant.App)
	site := app.Placements[0].Site
	w.a = registry.Connector{ID: ids.New[ids.ConnectorID](), Site: site, State: registry.Active}
	w.b = registry.Connector{ID: ids.New[ids.ConnectorID](), Site: site, State: registry.Active}
	w.cfg.Sources = atSite{w.world, []registry.Connector{w.a, w.b}}
	w.cfg.Online = func() []ids.ConnectorID { return w.online }
	return w
}

type atSite struct {
	*world
	list []registry.Connector
}

// give issues a grant as after a decision that grants.
func (w *sited) give() (Answer, error) {
	app, _ := w.catalog.App(w.grant.App)
	req := Request{App: app, Session: session.Session{
		ID: ids.New[ids.SessionID](), User: w.grant.User, Device: w.grant.Device, DeviceKey: laptop,
	}}
	rec := policy.Record{Receipt: ids.NewReceipt()}
	rec.Decision.Verdict, rec.Decision.Verbs = policy.VerdictAllow, []policy.Verb{"connect"}
	rec.Decision.Terms.HardEnd = w.now.Add(time.Hour)
	return w.Authorizer.give(w.t.Context(), req, rec, w.ledger.Sequence())
}

func TestOnlineConnectorsComeFirst(t *testing.T) {
	w := newSited(t)
	w.online = []ids.ConnectorID{w.b.ID}
	ans, err := w.give()
	if err != nil || len(ans.Connectors) != 2 || ans.Connectors[0].ID != w.b.ID {
		t.Errorf("%v, %+v, want b before a", err, ans.Connectors)
	}
}

// Nobody is sent to connectors that are all away; what was given stays.
func TestNoGrantWhileAllConnectorsAreAway(t *testing.T) {
	w := newSited(t)
	if _, err := w.give(); err != nil {
		t.Fatalf("a broker that has just started does not know yet who is away: %v", err)
	}
	w.online = []ids.ConnectorID{w.a.ID}
	w.pass(time.Minute)
	w.online = nil
	w.pass(awayAfter - time.Second)
	if _, err := w.give(); err != nil {
		t.Errorf("away for a moment: %v", err)
	}
	w.pass(2 * time.Second)
	if _, err := w.give(); !errors.Is(err, ErrNoConnector) {
		t.Errorf("away for long: %v, want ErrNoConnector", err)
	}
	if !w.live() {
		t.Error("a grant ended because its connector is away")
	}
	w.online = []ids.ConnectorID{w.b.ID}
	if _, err := w.give(); err != nil {
		t.Errorf("another connector is there: %v", err)
	}
}

func TestUnknownPresenceCountsAsOnline(t *testing.T) {
	w := newSited(t)
	w.cfg.Online = nil
	w.pass(2 * awayAfter)
	if _, err := w.give(); err != nil {
		t.Error(err)
	}
}

// Connectors lists those of the site.
func (s atSite) Connectors(context.Context) ([]registry.Connector, error) { return s.list, nil }
