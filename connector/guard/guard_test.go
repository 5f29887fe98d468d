package guard_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

var (
	broker   = seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)))
	stranger = seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize)))
	self     = ids.ConnectorID("con_" + strings.Repeat("1", 26))
	wiki     = ids.AppID("app_" + strings.Repeat("1", 26))
	payroll  = ids.AppID("app_" + strings.Repeat("2", 26))
	device   = ids.KeyIDOf([]byte("device"))
	other    = ids.KeyIDOf([]byte("another device"))
	start    = clock.Time{Wall: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Boot: time.Hour}
)

// fixture is a guard with an assignment and a fresh statement.
type fixture struct {
	*testing.T
	*guard.Guard
	seq uint64
	now clock.Time
}

func setUp(t *testing.T) *fixture {
	f := &fixture{T: t, Guard: guard.New(self, guard.Mark{}), now: start}
	f.SetKeys(seal.NewKeys(broker.Public()))
	f.assign(1, wiki)
	f.state(func(*grant.Statement) {})
	return f
}

func (f *fixture) assign(version uint64, apps ...ids.AppID) guard.Effects {
	f.Helper()
	fx, err := f.SetAssignment(assignment(broker, version, apps...))
	if err != nil {
		f.Fatal(err)
	}
	return fx
}

func assignment(s *seal.Signer, version uint64, apps ...ids.AppID) []byte {
	a := &grant.Assignment{Connector: self, Site: ids.SiteID("sit_" + strings.Repeat("1", 26)), Version: version}
	for _, id := range apps {
		a.Apps = append(a.Apps, grant.App{ID: id, Targets: []grant.Target{
			{Ports: grant.Ports{Network: grant.TCP, First: 80, Last: 90}, Host: "10.0.0.5", Base: 8080},
		}})
	}
	return grant.SealAssignment(s, a)
}

// statement returns the next statement of the broker after edit has changed it.
func (f *fixture) statement(s *seal.Signer, edit func(*grant.Statement)) []byte {
	f.seq++
	st := &grant.Statement{Connector: self, Epoch: 1, Sequence: f.seq, Time: f.now.Wall, Until: f.now.Wall.Add(time.Minute)}
	edit(st)
	return grant.SealStatement(s, st)
}

func (f *fixture) state(edit func(*grant.Statement)) guard.Effects {
	f.Helper()
	fx, err := f.ApplyStatement(f.statement(broker, edit), f.now)
	if err != nil {
		f.Fatal(err)
	}
	return fx
}

func sample(edit func(*grant.Grant)) *grant.Grant {
	g := &grant.Grant{
		ID: ids.New[ids.GrantID](), Receipt: ids.NewReceipt(), Session: ids.New[ids.SessionID](), User: ids.New[ids.UserID](),
		PeerKind: grant.PeerDevice, PeerKey: device, App: wiki, Verbs: []string{"connect"},
		Ports:      []grant.Ports{{Network: grant.TCP, First: 80, Last: 80}},
		Connectors: []ids.ConnectorID{self}, NotBefore: start.Wall, HardEnd: start.Wall.Add(8 * time.Hour), Outage: grant.OutageCut,
	}
	edit(g)
	return g
}

func (f *fixture) present(edit func(*grant.Grant)) *grant.Grant {
	f.Helper()
	g := sample(edit)
	if _, code := f.Present(device, grant.Seal(broker, g), f.now); code != frame.OK {
		f.Fatalf("Present = %v", code)
	}
	return g
}

func asIs(*grant.Grant) {}

func TestGrantOpensItsPort(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	targets, code := f.CheckOpen(g.ID, device, grant.TCP, 80, f.now)
	if code != frame.OK || len(targets) != 1 || targets[0].Host != "10.0.0.5" || targets[0].Port(80) != 8080 {
		t.Fatalf("CheckOpen = %+v, %v", targets, code)
	}
}

// TestPresentRefuses: each other use of a grant is refused with its own reason
// (DESIGN invariant 2).
func TestPresentRefuses(t *testing.T) {
	gateway := func(g *grant.Grant) { g.PeerKind = grant.PeerGateway }
	cases := map[string]struct {
		peer   ids.KeyID
		signer *seal.Signer
		edit   func(*grant.Grant)
		want   frame.Code
	}{
		"stolen by another device": {other, broker, asIs, frame.GrantForeign},
		"no peer at all":           {ids.KeyID{}, broker, asIs, frame.GrantForeign},
		"for another connector":    {device, broker, func(g *grant.Grant) { g.Connectors = []ids.ConnectorID{ids.New[ids.ConnectorID]()} }, frame.GrantForeign},
		"signed by a stranger":     {device, stranger, asIs, frame.GrantInvalid},
		"app not assigned":         {device, broker, func(g *grant.Grant) { g.App = payroll }, frame.NotAssigned},
		"expired":                  {device, broker, func(g *grant.Grant) { g.NotBefore, g.HardEnd = start.Wall.Add(-2*time.Hour), start.Wall }, frame.GrantExpired},
		"from the future":          {device, broker, func(g *grant.Grant) { g.NotBefore = start.Wall.Add(time.Minute) }, frame.GrantInvalid},
		"longer than remembered":   {device, broker, func(g *grant.Grant) { g.HardEnd = start.Wall.Add(100 * time.Hour) }, frame.UnsupportedConstraint},
		"gateway without opt-in":   {device, broker, gateway, frame.UnsupportedConstraint},
	}
	for name, c := range cases {
		f := setUp(t)
		g := sample(c.edit)
		if _, code := f.Present(c.peer, grant.Seal(c.signer, g), f.now); code != c.want {
			t.Errorf("%s: Present = %v, want %v", name, code, c.want)
		}
		if _, code := f.CheckOpen(g.ID, c.peer, grant.TCP, 80, f.now); code != frame.GrantUnknown {
			t.Errorf("%s: CheckOpen after refusal = %v", name, code)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	wide := f.present(func(g *grant.Grant) { g.Ports = []grant.Ports{{Network: grant.TCP, First: 1, Last: 65535}} })
	cases := map[string]struct {
		id   ids.GrantID
		peer ids.KeyID
		n    grant.Network
		port uint16
		want frame.Code
	}{
		"another port":            {g.ID, device, grant.TCP, 81, frame.PortNotGranted},
		"another network":         {g.ID, device, grant.UDP, 80, frame.PortNotGranted},
		"another device":          {g.ID, other, grant.TCP, 80, frame.GrantForeign},
		"unknown grant":           {ids.New[ids.GrantID](), device, grant.TCP, 80, frame.GrantUnknown},
		"granted, never assigned": {wide.ID, device, grant.TCP, 22, frame.NotAssigned},
	}
	for name, c := range cases {
		if _, code := f.CheckOpen(c.id, c.peer, c.n, c.port, f.now); code != c.want {
			t.Errorf("%s: CheckOpen = %v, want %v", name, code, c.want)
		}
	}
}

func TestNothingOpensWithoutStatement(t *testing.T) {
	g := guard.New(self, guard.Mark{})
	if _, code := g.Present(device, grant.Seal(broker, sample(asIs)), start); code != frame.GrantInvalid {
		t.Errorf("without keys: %v", code)
	}
	g.SetKeys(seal.NewKeys(broker.Public()))
	if _, code := g.Present(device, grant.Seal(broker, sample(asIs)), start); code != frame.NotLive {
		t.Errorf("without statement: %v", code)
	}
}

func TestRevocation(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	fx := f.state(func(st *grant.Statement) {
		st.Revoked = 1
		st.Revocations = []grant.Revocation{{Sequence: 1, Kind: grant.TargetUser, Target: string(g.User), At: f.now.Wall}}
	})
	if fx.End[g.ID] != frame.Revoked {
		t.Fatalf("effects = %+v", fx)
	}
	if _, code := f.Present(device, grant.Seal(broker, g), f.now); code != frame.Revoked {
		t.Errorf("the old grant again: %v", code)
	}
	f.now = f.now.Add(time.Second)
	fresh := sample(func(n *grant.Grant) { n.User, n.NotBefore = g.User, f.now.Wall })
	if _, code := f.Present(device, grant.Seal(broker, fresh), f.now); code != frame.OK {
		t.Errorf("a grant issued after the revocation: %v", code)
	}
}

func TestStatementRefuses(t *testing.T) {
	cases := map[string]struct {
		signer *seal.Signer
		edit   func(*grant.Statement)
		want   error
	}{
		"replayed":       {broker, func(st *grant.Statement) { st.Sequence = 1 }, guard.ErrOld},
		"older epoch":    {broker, func(st *grant.Statement) { st.Epoch = 0 }, guard.ErrOld},
		"foreign":        {broker, func(st *grant.Statement) { st.Connector = ids.New[ids.ConnectorID]() }, guard.ErrForeign},
		"stranger's":     {stranger, func(*grant.Statement) {}, seal.ErrUnknownKey},
		"older time":     {broker, func(st *grant.Statement) { st.Time = st.Time.Add(-time.Minute) }, guard.ErrOld},
		"misses some":    {broker, func(st *grant.Statement) { st.From, st.Revoked = 5, 9 }, guard.ErrGap},
		"over at issue":  {broker, func(st *grant.Statement) { st.Until = st.Time }, nil},
		"forgets some":   {broker, func(st *grant.Statement) { st.Revoked = 0 }, guard.ErrOld},
		"epoch with gap": {broker, func(st *grant.Statement) { st.Epoch, st.From, st.Revoked = 2, 1, 2 }, guard.ErrGap},
	}
	for name, c := range cases {
		f := setUp(t)
		f.state(func(st *grant.Statement) { st.Revoked = 3 })
		f.now = f.now.Add(10 * time.Second)
		_, err := f.ApplyStatement(f.statement(c.signer, func(st *grant.Statement) { st.Revoked = 3; c.edit(st) }), f.now)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: ApplyStatement = %v, want %v", name, err, c.want)
		}
		f.now = f.now.Add(50 * time.Second)
		if f.Live(f.now) {
			t.Errorf("%s: a refused statement prolonged the lease", name)
		}
	}
}

// TestRestartRefusesOldStatement: what is persisted outlives a restart.
func TestRestartRefusesOldStatement(t *testing.T) {
	f := setUp(t)
	old := f.statement(broker, func(*grant.Statement) {})
	f.state(func(st *grant.Statement) { st.Revoked = 7 })
	again := guard.New(self, f.Mark())
	again.SetKeys(seal.NewKeys(broker.Public()))
	if _, err := again.ApplyStatement(old, f.now); !errors.Is(err, guard.ErrOld) {
		t.Errorf("an old statement after a restart: %v", err)
	}
	fresh := guard.New(self, guard.Mark{})
	fresh.SetKeys(seal.NewKeys(broker.Public()))
	if _, err := fresh.ApplyStatement(old, f.now.Add(6*time.Minute)); !errors.Is(err, guard.ErrOld) {
		t.Errorf("a statement of six minutes ago on a new disk: %v", err)
	}
	if _, err := again.SetAssignment(assignment(broker, 0)); !errors.Is(err, guard.ErrOld) {
		t.Errorf("an old assignment after a restart: %v", err)
	}
}

// TestRestartTakesAListInParts: a connector that has just started holds no revocation, so
// the whole list comes again, in parts that end before what it had once applied.
func TestRestartTakesAListInParts(t *testing.T) {
	f := setUp(t)
	f.state(func(st *grant.Statement) { st.Revoked = 900 })
	if m := f.Holds(); m.Revoked != 900 || m.Sequence != f.seq || m.Assignment != 1 {
		t.Errorf("Holds() = %+v", m)
	}
	again := guard.New(self, f.Mark())
	if m := again.Holds(); m.Revoked != 0 || m.Assignment != 0 || m.Sequence != f.seq || m.Epoch != 1 {
		t.Errorf("after a restart Holds() = %+v", m)
	}
	again.SetKeys(seal.NewKeys(broker.Public()))
	f.Guard = again
	f.assign(1, wiki)
	stolen := sample(asIs)
	f.state(func(st *grant.Statement) {
		st.Revoked = 700
		st.Revocations = []grant.Revocation{{Sequence: 700, Kind: grant.TargetGrant, Target: string(stolen.ID), At: f.now.Wall}}
	})
	f.state(func(st *grant.Statement) { st.From, st.Revoked = 700, 900 })
	if m := f.Holds(); m.Revoked != 900 {
		t.Errorf("after both parts Holds() = %+v", m)
	}
	if _, code := f.Present(device, grant.Seal(broker, stolen), f.now); code != frame.Revoked {
		t.Errorf("revoked in the first part: %v", code)
	}
	back := f.statement(broker, func(st *grant.Statement) { st.Revoked = 700 })
	if _, err := f.ApplyStatement(back, f.now); !errors.Is(err, guard.ErrOld) {
		t.Errorf("a list that ends earlier than the one held: %v", err)
	}
}

func TestOutageModes(t *testing.T) {
	f := setUp(t)
	cut := f.present(asIs)
	cont := f.present(func(g *grant.Grant) { g.Outage, g.OutageGrace = grant.OutageContinue, time.Minute })
	hold := f.present(func(g *grant.Grant) { g.Outage, g.OutageGrace = grant.OutageHold, time.Minute })

	if fx := f.Tick(f.now.Add(59 * time.Second)); len(fx.End)+len(fx.Hold) != 0 {
		t.Fatalf("before the lease ended: %+v", fx)
	}
	fx := f.Tick(f.now.Add(60 * time.Second))
	if fx.End[cut.ID] != frame.LeaseEnded || len(fx.End) != 1 || len(fx.Hold) != 1 || fx.Hold[0] != hold.ID {
		t.Fatalf("at lease end: %+v", fx)
	}
	if _, code := f.CheckOpen(cont.ID, device, grant.TCP, 80, f.now.Add(61*time.Second)); code != frame.NotLive {
		t.Errorf("a new flow during the outage: %v", code)
	}
	if code := f.CheckAttach(cont.ID, device); code != frame.OK {
		t.Errorf("re-attaching an old flow during the outage: %v", code)
	}
	f.now = f.now.Add(90 * time.Second)
	if fx := f.state(func(*grant.Statement) {}); len(fx.Resume) != 1 || fx.Resume[0] != hold.ID {
		t.Fatalf("after news: %+v", fx)
	}
	fx = f.Tick(f.now.Add(2 * time.Minute))
	if fx.End[cont.ID] != frame.LeaseEnded || fx.End[hold.ID] != frame.LeaseEnded {
		t.Errorf("after the grace: %+v", fx)
	}
}

// TestSuspendDoesNotExtend: the boot clock went on while the wall clock was set back.
func TestSuspendDoesNotExtend(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	woken := clock.Time{Wall: f.now.Wall.Add(-time.Hour), Boot: f.now.Boot + time.Hour}
	if fx := f.Tick(woken); fx.End[g.ID] != frame.LeaseEnded {
		t.Errorf("after suspend: %+v", fx)
	}
}

func TestHardEndAndAssignmentEnd(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	f.now = f.now.Add(8 * time.Hour)
	f.state(func(*grant.Statement) {})
	if fx := f.Tick(f.now); fx.End[g.ID] != frame.GrantExpired {
		t.Errorf("at the hard end: %+v", fx)
	}
	f = setUp(t)
	g = f.present(asIs)
	if fx := f.assign(2, payroll); fx.End[g.ID] != frame.NotAssigned {
		t.Errorf("the app left the assignment: %+v", fx)
	}
}

func TestRestoreVoidsEarlierGrants(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	f.now = f.now.Add(time.Minute)
	fx := f.state(func(st *grant.Statement) { st.Epoch, st.VoidBefore = 2, f.now.Wall })
	if fx.End[g.ID] != frame.Revoked {
		t.Errorf("effects = %+v", fx)
	}
	if _, code := f.Present(device, grant.Seal(broker, g), f.now); code != frame.Revoked {
		t.Errorf("the grant again: %v", code)
	}
}

func TestUnknownRevocationKindEndsAll(t *testing.T) {
	f := setUp(t)
	g := f.present(asIs)
	fx := f.state(func(st *grant.Statement) {
		st.Revoked = 1
		st.Revocations = []grant.Revocation{{Sequence: 1, Kind: 99, Target: "later", At: f.now.Wall}}
	})
	if fx.End[g.ID] != frame.Revoked {
		t.Errorf("effects = %+v", fx)
	}
	if _, code := f.Present(device, grant.Seal(broker, g), f.now); code != frame.Revoked {
		t.Errorf("again: %v", code)
	}
}
