package guard_test

import (
	"errors"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
)

// Losing a carrier while the broker is away must not cut what the outage mode lets live:
// the client shows its grant again on the next carrier. Nothing new opens by it.
func TestGrantIsShownAgainInAnOutage(t *testing.T) {
	for name, tt := range map[string]struct {
		mode  grant.OutageMode
		after time.Duration
		want  frame.Code
	}{
		"cut":                       {grant.OutageCut, 61 * time.Second, frame.NotLive},
		"continue":                  {grant.OutageContinue, 61 * time.Second, frame.OK},
		"hold":                      {grant.OutageHold, 61 * time.Second, frame.OK},
		"hold, after its time":      {grant.OutageHold, 121 * time.Second, frame.NotLive},
		"continue, after its time":  {grant.OutageContinue, 121 * time.Second, frame.NotLive},
		"continue, in a long sleep": {grant.OutageContinue, 24 * time.Hour, frame.NotLive},
	} {
		f := setUp(t)
		g := f.present(func(g *grant.Grant) { g.Outage, g.OutageGrace = tt.mode, time.Minute })
		later := f.now.Add(tt.after)
		envelope := grant.Seal(broker, g)
		if _, code := f.Present(device, envelope, later); code != tt.want {
			t.Errorf("%s: shown again = %v, want %v", name, code, tt.want)
		}
		if _, code := f.Present(other, envelope, later); code == frame.OK {
			t.Errorf("%s: shown by another device = %v", name, code)
		}
		if _, code := f.CheckOpen(g.ID, device, grant.TCP, 80, later); code != frame.NotLive {
			t.Errorf("%s: a new flow = %v, want not live", name, code)
		}
		fresh := sample(func(g *grant.Grant) { g.Outage, g.OutageGrace = tt.mode, time.Minute })
		if _, code := f.Present(device, grant.Seal(broker, fresh), later); code != frame.NotLive {
			t.Errorf("%s: a grant never seen = %v, want not live", name, code)
		}
	}
}

// An app that moved: its old target must not go on being reached by flows that are open.
func TestLostTargetEndsGrants(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	app, _ := f.Assignment().Find(wiki)
	moved := app
	moved.Targets = append([]grant.Target(nil), app.Targets...)
	moved.Targets[0].Host = "10.0.0.6"
	more := app
	more.Targets = append(append([]grant.Target(nil), app.Targets...), moved.Targets[0])
	assign := func(version uint64, a grant.App) map[string]frame.Code {
		t.Helper()
		fx, err := f.SetAssignment(grant.SealAssignment(broker, &grant.Assignment{
			Connector: self, Site: f.Assignment().Site, Version: version, Apps: []grant.App{a},
		}))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]frame.Code{}
		for id, code := range fx.End {
			out[string(id)] = code
		}
		return out
	}
	if ended := assign(2, more); len(ended) != 0 {
		t.Errorf("one more target ended %v", ended)
	}
	if ended := assign(3, moved); ended[string(g.ID)] != frame.NotAssigned {
		t.Errorf("the target moved: ended %v, want the grant", ended)
	}
}

// A broker that was restored from yesterday numbers its assignments lower than before.
func TestRestoredBrokerAssignsAgain(t *testing.T) {
	f := setUp(t)
	f.assign(7, wiki)
	if _, err := f.SetAssignment(assignment(broker, 5, payroll)); !errors.Is(err, guard.ErrOld) {
		t.Errorf("an older assignment of the same epoch: %v, want ErrOld", err)
	}
	f.state(func(st *grant.Statement) { st.Epoch = 2 })
	f.assign(5, payroll)
	if _, ok := f.Assignment().Find(payroll); !ok {
		t.Error("the assignment of the restored broker is not in force")
	}
	if _, err := f.SetAssignment(assignment(broker, 4, wiki)); !errors.Is(err, guard.ErrOld) {
		t.Errorf("an older assignment of the new epoch: %v, want ErrOld", err)
	}
}
