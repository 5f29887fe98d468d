package authorize

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	office = "10.1.2.3"
	desk   = "10.1.9.9" // another place in the office
	cafe   = "192.0.2.7"
)

// roaming is the world with a laptop that moves, and a policy that lets it in from the
// office's network only, or from everywhere.
type roaming struct {
	*sited
	app *catalog.App
	ses session.Session
	rev *policy.Revision
}

func newRoaming(t *testing.T, networks ...string) *roaming {
	w := &roaming{sited: newSited(t)}
	w.online = []ids.ConnectorID{w.a.ID, w.b.ID}
	w.app, _ = w.catalog.App(w.grant.App)
	doc := policy.NewDocument()
	row := doc.Baseline[policy.Internal]
	row.MinLevel = trust.LevelUnknown // the laptop reports nothing
	doc.Baseline[policy.Internal] = row
	doc.Rules = []policy.Rule{{
		ID: ids.New[ids.RuleID](), Name: "office", Effect: policy.Allow, Who: policy.Who{SignedIn: true}, Apps: policy.Apps{Any: true},
		Conditions: policy.Conditions{Networks: networks},
	}}
	rev, err := policy.Compile(policy.Meta{ID: ids.New[ids.RevisionID](), Number: 1}, doc)
	w.must(err)
	w.rev = rev
	w.ses = session.Session{
		ID: ids.New[ids.SessionID](), User: ids.New[ids.UserID](), Device: ids.New[ids.DeviceID](), DeviceKey: laptop,
		Created: day, AuthTime: day, LastVerified: day, LastActive: day, Source: office,
	}
	w.cfg.Sources, w.cfg.Decider = w, w
	w.reactor.cfg.Sources = w
	return w
}

func (w *roaming) User(_ context.Context, id ids.UserID) (directory.User, error) {
	return directory.User{ID: id}, nil
}

func (w *roaming) Device(_ context.Context, id ids.DeviceID) (registry.Device, error) {
	return registry.Device{ID: id, Identity: registry.Identity{Key: laptop}, State: registry.Active}, nil
}

func (w *roaming) Session(context.Context, ids.SessionID) (session.Session, error) {
	return w.ses, w.session
}

func (w *roaming) Connectors(context.Context) ([]registry.Connector, error) {
	return []registry.Connector{w.a, w.b}, nil
}

func (w *roaming) Current() *policy.Revision { return w.rev }

func (w *roaming) Decide(_ context.Context, in policy.Input) (policy.Record, error) {
	return policy.Record{Receipt: ids.NewReceipt(), Time: in.Time, Decision: w.rev.Decide(in)}, nil
}

// ask is what the control API does with a question from an address.
func (w *roaming) ask(from string) Answer {
	w.t.Helper()
	w.ses.Source = from
	w.Moved(w.t.Context(), w.ses)
	ans, err := w.Authorize(w.t.Context(), Request{Session: w.ses, App: w.app, Source: netip.MustParseAddr(from)})
	w.must(err)
	return ans
}

func (w *roaming) lives(g *grants.Grant) bool {
	_, ok := w.ledger.Grant(g.ID)
	return ok
}

// TestMoveIsJudged: what was given in the office ends in the café, with the reason, and is
// given anew on the way back.
func TestMoveIsJudged(t *testing.T) {
	w := newRoaming(t, "10.1.0.0/16")
	first := w.ask(office)
	if first.Grant == nil {
		t.Fatalf("in the office: %v", first.Decision.Reasons)
	}
	if again := w.ask(desk); again.Grant == nil || again.Grant.ID != first.Grant.ID {
		t.Errorf("a move inside the office: %+v, want the same grant", again)
	}
	out := w.ask(cafe)
	if out.Grant != nil || out.Decision.Reasons[0].Code != policy.CodeNetwork {
		t.Fatalf("in the café: %+v", out)
	}
	if w.lives(first.Grant) {
		t.Error("the office's grant outlives the move")
	}
	if e, ok := w.WhyEnded(first.Grant.ID); !ok || e.Cause != grants.CauseSourceChanged || e.Record.Decision.Reasons[0].Code != policy.CodeNetwork {
		t.Errorf("why: %+v, %v", e, ok)
	}
	if back := w.ask(office); back.Grant == nil || back.Grant.ID == first.Grant.ID {
		t.Errorf("back in the office: %+v, want a new grant", back)
	}
}

// TestMoveWithoutCondition: where the address does not count, a move changes nothing.
func TestMoveWithoutCondition(t *testing.T) {
	w := newRoaming(t)
	first := w.ask(office)
	if again := w.ask(cafe); again.Grant == nil || again.Grant.ID != first.Grant.ID {
		t.Errorf("after the move: %+v, want the same grant", again)
	}
}

// TestUnjudgedGrantIsNotGivenAgain: a grant of another address is no answer before it was
// judged for this one.
func TestUnjudgedGrantIsNotGivenAgain(t *testing.T) {
	w := newRoaming(t, "10.1.0.0/16")
	w.ask(office)
	ans, err := w.Authorize(t.Context(), Request{Session: w.ses, App: w.app, Source: netip.MustParseAddr(cafe)})
	if err != nil || ans.Grant != nil {
		t.Errorf("%+v, %v", ans, err)
	}
}

// TestMoveSeenByAnotherBroker: the session's change event alone is enough, and what is decided
// again in its time is decided for where the device is.
func TestMoveSeenByAnotherBroker(t *testing.T) {
	w := newRoaming(t, "10.1.0.0/16")
	g := w.ask(office).Grant
	w.must(w.reactor.change(t.Context(), Change{session.Topic, string(w.ses.ID)}))
	if !w.lives(g) {
		t.Fatal("a change of the session that is no move ended the grant")
	}
	w.ses.Source = cafe
	w.must(w.reactor.change(t.Context(), Change{session.Topic, string(w.ses.ID)}))
	if e, _ := w.WhyEnded(g.ID); w.lives(g) || e.Cause != grants.CauseSourceChanged {
		t.Errorf("lives: %v, cause %s", w.lives(g), e.Cause)
	}
	g = w.ask(office).Grant
	w.ses.Source = cafe
	w.pass(6 * time.Minute) // past the time of the next decision
	if w.lives(g) {
		t.Error("decided again for an address of before")
	}
}
