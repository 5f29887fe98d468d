package session_test

import (
	"testing"
	"time"

	"github.com/postern-zt/postern/client/session"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

var (
	wiki  = session.App{ID: "app_wiki", Name: "wiki"}
	pay   = session.App{ID: "app_pay", Name: "payroll"}
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func grant(end time.Time, connectors ...string) *session.Grant {
	g := &session.Grant{ID: ids.New[ids.GrantID](), HardEnd: end}
	for _, c := range connectors {
		g.Connectors = append(g.Connectors, &controlv1.ConnectorPath{ConnectorId: c})
	}
	return g
}

func TestGrantIsUsedUntilItsEnd(t *testing.T) {
	var b session.Book
	if _, ok := b.Grant(wiki, start); ok {
		t.Fatal("an empty book grants")
	}
	b.Allow(wiki, grant(start.Add(time.Hour)))
	for offset, want := range map[time.Duration]bool{0: true, 59 * time.Minute: true} {
		if _, ok := b.Grant(wiki, start.Add(offset)); ok != want {
			t.Errorf("after %v: %v", offset, ok)
		}
	}
	if _, ok := b.Grant(pay, start); ok {
		t.Error("another app is granted")
	}
	if _, ok := b.Grant(wiki, start.Add(time.Hour)); ok {
		t.Error("an ended grant is used")
	}
	if _, ok := b.Grant(wiki, start); ok {
		t.Error("an ended grant came back")
	}
}

func TestEndedGrantIsGone(t *testing.T) {
	var b session.Book
	g := grant(start.Add(time.Hour))
	b.Allow(wiki, g)
	if b.End(ids.New[ids.GrantID]()) {
		t.Error("an unknown grant was ended")
	}
	if _, ok := b.Grant(wiki, start); !ok {
		t.Error("it ended another one")
	}
	if !b.End(g.ID) {
		t.Error("not found")
	}
	if _, ok := b.Grant(wiki, start); ok {
		t.Error("still granted")
	}
}

func TestDenialHolds(t *testing.T) {
	var b session.Book
	r := &controlv1.Receipt{Id: "K7M2-Q4TX"}
	b.Deny(pay, r, 30*time.Second, start)
	if got, ok := b.Denial(pay, start.Add(29*time.Second)); !ok || got != r {
		t.Error("forgotten too early")
	}
	if _, ok := b.Denial(wiki, start); ok {
		t.Error("another app is denied")
	}
	if _, ok := b.Denial(pay, start.Add(30*time.Second)); ok {
		t.Error("held too long")
	}
	b.Deny(pay, r, 365*24*time.Hour, start)
	if _, ok := b.Denial(pay, start.Add(time.Hour)); ok {
		t.Error("the broker may silence an app for a year")
	}
	b.Deny(pay, r, time.Minute, start)
	b.ForgetDenials()
	if _, ok := b.Denial(pay, start); ok {
		t.Error("not forgotten")
	}
	b.Deny(pay, r, time.Minute, start)
	b.Allow(pay, grant(start.Add(time.Hour)))
	if _, ok := b.Denial(pay, start); ok {
		t.Error("a denial outlives a later grant")
	}
	b.EndAll()
	if _, ok := b.Grant(pay, start); ok {
		t.Error("a grant outlives the session")
	}
}

func TestViaNamesAnAppOfTheConnector(t *testing.T) {
	var b session.Book
	b.Allow(wiki, grant(start.Add(time.Hour), "con_1"))
	b.Allow(session.App{Name: "DB.corp.internal."}, grant(start.Add(time.Hour), "con_2"))
	if app, ok := b.Via("con_1", start); !ok || app.Key() != wiki.Key() {
		t.Errorf("con_1: %v %v", app, ok)
	}
	if app, ok := b.Via("con_2", start); !ok || app.Name != "db.corp.internal" {
		t.Errorf("con_2: %v %v", app, ok)
	}
	if _, ok := b.Via("con_3", start); ok {
		t.Error("con_3 has no grant")
	}
	if _, ok := b.Via("con_1", start.Add(2*time.Hour)); ok {
		t.Error("an ended grant is used")
	}
}

func TestAfterNeverDialsTwice(t *testing.T) {
	for _, c := range []frame.Code{frame.Refused, frame.Unreachable, frame.Timeout, frame.NameLeftAssignment, frame.Internal, frame.PortNotGranted, frame.Code(999)} {
		if got := session.After(c); got != session.GiveUp {
			t.Errorf("After(%s) = %v, want GiveUp", c, got)
		}
	}
	for _, c := range []frame.Code{frame.GrantExpired, frame.Revoked} {
		if got := session.After(c); got != session.AskAgain {
			t.Errorf("After(%s) = %v, want AskAgain", c, got)
		}
	}
	if got := session.After(frame.NotDialled); got != session.TryAnother {
		t.Errorf("After(not_dialled) = %v", got)
	}
}

func TestOutcomeOfIsTruthful(t *testing.T) {
	for c, want := range map[frame.Code]session.Outcome{
		frame.Refused: session.Refused, frame.Timeout: session.TimedOut, frame.Unreachable: session.Unreachable,
		frame.Denied: session.NotAllowed, frame.Revoked: session.NotAllowed, frame.Code(999): session.NotAllowed,
	} {
		if got := session.OutcomeOf(c); got != want {
			t.Errorf("OutcomeOf(%s) = %v, want %v", c, got, want)
		}
	}
}

func TestNoticesAreNotRepeated(t *testing.T) {
	var n session.Notices
	for _, c := range []struct {
		app    string
		reason string
		after  time.Duration
		want   bool
	}{
		{"payroll", "no_rule", 0, true},
		{"payroll", "no_rule", time.Minute, false},
		{"payroll", "device_fact", time.Minute, true},
		{"wiki", "no_rule", time.Minute, true},
		{"payroll", "no_rule", 9*time.Minute + 59*time.Second, false},
		{"payroll", "no_rule", 10 * time.Minute, true},
	} {
		if got := n.Due(c.app, []string{c.reason}, start.Add(c.after)); got != c.want {
			t.Errorf("Due(%s, %s) after %v = %v", c.app, c.reason, c.after, got)
		}
	}
}
