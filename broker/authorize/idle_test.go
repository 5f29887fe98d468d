package authorize

import (
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

const idleLimit = 10 * time.Minute

// quiet is the world with two connectors and one grant that may be idle for idleLimit.
type quiet struct {
	*sited
	id ids.GrantID
}

func newQuiet(t *testing.T) *quiet {
	w := &quiet{sited: newSited(t)}
	w.online = []ids.ConnectorID{w.a.ID, w.b.ID}
	w.cfg.Sources = atSite{w.world, []registry.Connector{w.a, w.b}}
	w.id = w.giveIdle(idleLimit)
	w.reactor.due(t.Context()) // idleness counts from the first look
	return w
}

func (w *quiet) giveIdle(limit time.Duration) ids.GrantID {
	w.t.Helper()
	g := *w.grant
	g.Receipt, g.Connectors, g.Idle = ids.NewReceipt(), []ids.ConnectorID{w.a.ID, w.b.ID}, limit
	given, _, err := w.ledger.Issue(w.t.Context(), g, w.ledger.Sequence(), w.now)
	w.must(err)
	return given.ID
}

// report has both connectors report every 15 s for d; busy is what moves at b.
func (w *quiet) report(d time.Duration, busy ...ids.GrantID) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.Active(w.a.ID, nil)
		w.Active(w.b.ID, busy)
		w.pass(15 * time.Second)
	}
}

func (w *quiet) holds(id ids.GrantID) bool {
	_, ok := w.ledger.Grant(id)
	return ok
}

func TestIdleGrantEndsWithItsReason(t *testing.T) {
	w := newQuiet(t)
	endless := w.giveIdle(0)
	w.report(idleLimit - 30*time.Second)
	if !w.holds(w.id) {
		t.Fatal("ended before its time")
	}
	given, _ := w.ledger.Grant(w.id)
	w.report(time.Minute)
	if w.holds(w.id) {
		t.Fatal("lives though nothing moved")
	}
	if !w.holds(endless) {
		t.Error("a grant without an idle limit ended")
	}
	e, ok := w.WhyReceiptEnded(given.Receipt)
	if !ok || e.Cause != grants.CauseIdle || e.Record.Receipt != given.Receipt || e.Record.Decision.Verdict != policy.VerdictDeny ||
		e.Record.Decision.Reasons[0].Text(policy.English) != "Nothing was sent or received for 10m, so this access was closed; using the app opens it again." {
		t.Errorf("why: %+v, %v", e, ok)
	}
}

// Bytes at one connector keep the grant at all of them.
func TestBusyGrantIsNotIdle(t *testing.T) {
	w := newQuiet(t)
	w.report(2*idleLimit, w.id)
	if !w.holds(w.id) {
		t.Fatal("a busy grant ended")
	}
	w.report(idleLimit + time.Minute)
	if w.holds(w.id) {
		t.Error("lives though it is busy no longer")
	}
}

// A connector speaks only for grants that name it, or it could keep those of another site.
func TestForeignConnectorKeepsNoGrant(t *testing.T) {
	w := newQuiet(t)
	stranger := ids.New[ids.ConnectorID]()
	for end := w.now.Add(idleLimit + time.Minute); w.now.Before(end); {
		w.Active(stranger, []ids.GrantID{w.id})
		w.report(15 * time.Second)
	}
	if w.holds(w.id) {
		t.Error("a connector that the grant does not name kept it")
	}
}

// The silence of a connector that does not report, because it is older or attached to
// another broker, says nothing; one that is away carries no bytes.
func TestSilenceOfOthersSaysNothing(t *testing.T) {
	w := newQuiet(t)
	for end := w.now.Add(2 * idleLimit); w.now.Before(end); {
		w.b.Seen.Last = w.now
		w.cfg.Sources = atSite{w.world, []registry.Connector{w.a, w.b}}
		w.Active(w.a.ID, nil)
		w.pass(15 * time.Second)
	}
	if !w.holds(w.id) {
		t.Fatal("ended though a connector may have carried bytes")
	}
	for end := w.now.Add(2 * time.Minute); w.now.Before(end); {
		w.Active(w.a.ID, nil)
		w.pass(15 * time.Second)
	}
	if w.holds(w.id) {
		t.Error("lives though the only connector that could carry bytes reports silence")
	}
}

// What moved is known only up to the latest report.
func TestShortLimitWaitsForAReport(t *testing.T) {
	w := newQuiet(t)
	short := w.giveIdle(2 * time.Second)
	w.report(time.Minute, short)
	if !w.holds(short) {
		t.Fatal("ended between two reports that both say it is busy")
	}
	w.report(time.Minute)
	if w.holds(short) {
		t.Error("lives on")
	}
}
