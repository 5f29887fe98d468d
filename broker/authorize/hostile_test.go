package authorize

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestMain(m *testing.M) { storetest.Main(m) }

var (
	day     = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	laptop  = ids.KeyIDOf([]byte("laptop"))
	errAway = errors.New("the store is away")
)

// world is a ledger with one live grant, and everything around it faked: nothing is allowed
// any more, and the sources fail as the test says.
type world struct {
	*Authorizer
	t       *testing.T
	reactor *Reactor
	ledger  *grants.Ledger
	grant   *grants.Grant
	now     time.Time
	catalog *catalog.Snapshot
	session error
	device  error
	cut     []Ended
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st := storetest.Open(t, storetest.SQLite(t))
	w := &world{t: t, now: day}
	log, now := slog.New(slog.DiscardHandler), func() time.Time { return w.now }
	var err error
	w.ledger, err = grants.New(grants.Config{
		Store: st, Signer: seal.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))), Now: now, Log: log,
	})
	w.must(err)
	w.must(w.ledger.Load(t.Context(), 1, day))
	app := w.publish(st)
	w.Authorizer = New(Config{
		Sources: w, Decider: w, Ledger: w.ledger, Trust: func() trust.Settings { return (*policy.Revision)(nil).Trust() },
		Audit: w, Now: now, Log: log,
	})
	w.reactor = NewReactor(ReactorConfig{Authorizer: w.Authorizer, Ledger: w.ledger, Sources: w, Listener: w, Now: now, Log: log})
	w.grant, _, err = w.ledger.Issue(t.Context(), grants.Grant{
		Receipt: ids.NewReceipt(), Session: ids.New[ids.SessionID](), User: ids.New[ids.UserID](), Device: "dev_x",
		PeerKind: grant.PeerDevice, PeerKey: laptop, App: app.ID, AppName: app.Name, Ports: app.GrantPorts(), Verbs: []string{"connect"},
		Connectors: []ids.ConnectorID{ids.New[ids.ConnectorID]()}, HardEnd: day.Add(time.Hour), Outage: catalog.Outage{Mode: grant.OutageCut},
	}, w.ledger.Sequence(), day)
	w.must(err)
	return w
}

func (w *world) publish(st catalog.Store) catalog.App {
	w.t.Helper()
	c := catalog.New(catalog.Config{Store: st})
	site, err := c.CreateSite(w.t.Context(), "berlin")
	w.must(err)
	app, err := c.CreateApp(w.t.Context(), catalog.App{
		Name: "wiki", Placements: []catalog.Placement{{Site: site.ID, Targets: []catalog.Target{{Host: "10.0.0.5", Port: 80}}}},
	}, day)
	w.must(err)
	w.catalog = c.Current()
	return app
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// pass lets time go by, a second at a time, as RunDue does.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(time.Second) {
		w.reactor.due(w.t.Context())
	}
	w.reactor.due(w.t.Context())
}

func (w *world) live() bool {
	_, ok := w.ledger.Grant(w.grant.ID)
	return ok
}

func (w *world) User(context.Context, ids.UserID) (directory.User, error) {
	return directory.User{}, nil
}

func (w *world) Device(context.Context, ids.DeviceID) (registry.Device, error) {
	return registry.Device{Identity: registry.Identity{Key: laptop}}, w.device
}

func (w *world) Facts(context.Context, ids.DeviceID) (registry.DeviceFacts, error) {
	return registry.DeviceFacts{}, registry.ErrNotFound
}

func (w *world) Session(context.Context, ids.SessionID) (session.Session, error) {
	return session.Session{}, w.session
}

func (w *world) Connectors(context.Context) ([]registry.Connector, error) { return nil, nil }
func (w *world) Catalog() *catalog.Snapshot                               { return w.catalog }

// Current is no policy, which denies.
func (w *world) Current() *policy.Revision { return nil }

func (w *world) Decide(context.Context, policy.Input) (policy.Record, error) {
	return policy.Record{}, nil
}

func (w *world) Append(context.Context, audit.Event) (audit.Ref, error) { return audit.Ref{}, nil }
func (w *world) AppendBestEffort(audit.Event)                           {}

func (w *world) GrantsEnded([]Ended)                           {}
func (w *world) CatalogChanged()                               {}
func (w *world) PolicyChanged()                                {}
func (w *world) UserChanged(ids.UserID)                        {}
func (w *world) SessionChanged(context.Context, ids.SessionID) {}
func (w *world) DeviceChanged(ids.DeviceID)                    {}
func (w *world) CutDevice(context.Context, ids.DeviceID)       {}
func (w *world) ConnectorChanged(ids.ConnectorID)              {}
func (w *world) RelaysChanged()                                {}
func (w *world) CutLinks(_ context.Context, list []Ended)      { w.cut = append(w.cut, list...) }

// A change must not be forgotten because the store failed in the moment it was looked at.
func TestFailedQuestionIsAskedAgain(t *testing.T) {
	w := newWorld(t)
	w.session = errAway
	w.must(w.reactor.change(t.Context(), Change{session.Topic, string(w.grant.Session)}))
	if !w.live() {
		t.Fatal("a store that is away for a moment ended a grant")
	}
	w.session = nil
	w.pass(retryAfter)
	if w.live() {
		t.Errorf("the grant lives %s after the store is back, though nothing allows it", retryAfter)
	}
}

// A device whose row is gone cannot be looked up by its key.
func TestRemovedDeviceEndsItsGrants(t *testing.T) {
	w := newWorld(t)
	w.device = registry.ErrNotFound
	_ = w.reactor.change(t.Context(), Change{registry.TopicDevice, "dev_other"})
	if !w.live() {
		t.Error("another device's end ended the grant")
	}
	_ = w.reactor.change(t.Context(), Change{registry.TopicDevice, "dev_x"})
	if w.live() {
		t.Error("the grant outlives its device")
	}
}

// What an administrator ends is cut at the relays like what a re-evaluation ends, when the
// connector does not answer.
func TestAdminsRevocationReachesTheRelays(t *testing.T) {
	w := newWorld(t)
	fx := w.Revoke(grants.User(w.grant.User), grants.CauseAdmin, "usr_root")
	w.pass(acknowledgeWithin + time.Second)
	if len(w.cut) != 1 || w.cut[0].Grant.ID != w.grant.ID || w.cut[0].Sequence != fx.Sequence || len(w.cut[0].Connectors) != 1 {
		t.Errorf("handed to the relays: %+v, want the grant with sequence %d", w.cut, fx.Sequence)
	}
}

// A grant that was given without limits must not outlive the decision that limits.
func TestTermsAreComparedAgain(t *testing.T) {
	app := &catalog.App{}
	given := policy.Terms{MaxFlows: 10, OpenRate: 600, Idle: policy.Duration(time.Hour), Outage: policy.OutageHold, OutageFor: policy.Duration(time.Minute)}
	g := grantOf(Request{App: app}, policy.Record{Decision: policy.Decision{Terms: given}}, nil)
	if !sameTerms(app, given, &g) {
		t.Errorf("the same terms are not the same: %+v", g)
	}
	for name, change := range map[string]func(*policy.Terms){
		"a rate":         func(t *policy.Terms) { t.RateKbps = 1000 },
		"fewer flows":    func(t *policy.Terms) { t.MaxFlows = 5 },
		"fewer opens":    func(t *policy.Terms) { t.OpenRate = 60 },
		"less idleness":  func(t *policy.Terms) { t.Idle = policy.Duration(time.Minute) },
		"cut in outages": func(t *policy.Terms) { t.Outage, t.OutageFor = policy.OutageCut, 0 },
	} {
		terms := given
		change(&terms)
		if sameTerms(app, terms, &g) {
			t.Errorf("%s: the grant stays as it was", name)
		}
	}
	older := g
	older.OpensPerMinute, older.Idle = 0, 0
	if !sameTerms(app, given, &older) {
		t.Error("an update of the broker ends the grants of the one before")
	}
}
