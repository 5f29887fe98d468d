package grants_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestStatementConcernsOneConnector(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), 7, day)
	w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
	w.issue(t, wish(ben, benSes, desk, git, conTwo), day)
	one := w.Revoke(grants.User(ann), grants.CauseAdmin, day)
	two := w.Revoke(grants.Device(desk), grants.CauseAdmin, day)
	st := w.statement(t, conOne, day)
	want := &grant.Statement{
		Connector: conOne, Epoch: 7, Sequence: uint64(day.UnixMilli()), Time: day, Until: day.Add(time.Minute),
		Revoked: two.Sequence, Revocations: []grant.Revocation{{Sequence: one.Sequence, Kind: grant.TargetUser, Target: string(ann), At: day}},
	}
	if diff := cmp.Diff(want, st); diff != "" {
		t.Errorf("statement for the first connector (-want +got):\n%s", diff)
	}
	if st := w.statement(t, conTwo, day); len(st.Revocations) != 1 || st.Revocations[0].Target != desk.String() {
		t.Errorf("the second connector hears %+v", st.Revocations)
	}
	if st := w.statement(t, ids.New[ids.ConnectorID](), day); len(st.Revocations) != 0 {
		t.Errorf("a third connector hears %+v", st.Revocations)
	}
}

func TestAcknowledge(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), 1, day)
	w.issue(t, wish(ann, annSes, laptop, wiki, conOne, conTwo), day)
	r := w.Revoke(grants.User(ann), grants.CauseAdmin, day)
	for i := range 2 {
		if st := w.statement(t, conOne, day); len(st.Revocations) != 1 || st.From != 0 {
			t.Errorf("statement %d before the acknowledgement: %+v", i, st)
		}
	}
	if got := w.Unacknowledged(r.Sequence); len(got) != 2 {
		t.Errorf("unacknowledged by %v, want both", got)
	}
	w.Acknowledge(conOne, r.Sequence)
	if got := w.Unacknowledged(r.Sequence); !slices.Equal(got, []ids.ConnectorID{conTwo}) {
		t.Errorf("unacknowledged by %v, want the second", got)
	}
	if st := w.statement(t, conOne, day); len(st.Revocations) != 0 || st.From != r.Sequence || st.Revoked != r.Sequence {
		t.Errorf("statement after the acknowledgement: %+v", st)
	}
	w.Acknowledge(conOne, 0)
	w.Acknowledge(conTwo, 1<<50)
	if st := w.statement(t, conTwo, day); st.From != r.Sequence {
		t.Errorf("From after a wild acknowledgement = %d", st.From)
	}
	// A connector that restarted has lost the list and gets it again.
	w.Attach(conOne, grants.Applied{Epoch: 1})
	if st := w.statement(t, conOne, day); len(st.Revocations) != 1 || st.From != 0 {
		t.Errorf("statement after a restart of the connector: %+v", st)
	}
	w.Detach(conOne)
	if got := w.Unacknowledged(r.Sequence); !slices.Equal(got, []ids.ConnectorID{conOne}) {
		t.Errorf("unacknowledged by %v, want the one that is gone", got)
	}
}

func TestSequencesGoUpOverRestarts(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		w := newWorld(t, open(), 1, day)
		w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
		r := w.Revoke(grants.User(ann), grants.CauseAdmin, day)
		w.flush(t)
		first, second := w.statement(t, conOne, day), w.statement(t, conOne, day)
		if second.Sequence <= first.Sequence {
			t.Errorf("sequences %d, %d in one millisecond", first.Sequence, second.Sequence)
		}
		again := newWorld(t, open(), 1, day)
		again.Attach(conOne, grants.Applied{Epoch: 1, Statement: second.Sequence, Revoked: 0})
		st := again.statement(t, conOne, day.Add(-time.Hour))
		if st.Sequence <= second.Sequence || st.Revoked != r.Sequence || len(st.Revocations) != 1 {
			t.Errorf("statement after a restart with a clock that went back: %+v", st)
		}
	})
}

// A revocation found the disk full, and the broker died: what it says next is still news.
func TestSequenceOutlivesLostRevocations(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, s, 1, day)
	w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
	lost := w.Revoke(grants.User(ann), grants.CauseAdmin, day.Add(time.Second))
	again := newWorld(t, s, 1, day.Add(time.Minute))
	again.Attach(conOne, grants.Applied{})
	if st := again.statement(t, conOne, day.Add(time.Minute)); st.Revoked < lost.Sequence {
		t.Errorf("after a restart the statement goes up to %d, the connector knows %d", st.Revoked, lost.Sequence)
	}
}

func TestOneTargetIsListedOnce(t *testing.T) {
	w := newWorld(t, nowhere{}, 1, day)
	var last grants.Effect
	for i := range 3 {
		now := day.Add(time.Duration(i) * time.Second)
		w.issue(t, wish(ann, annSes, laptop, wiki, conOne), now)
		w.issue(t, wish(ben, benSes, desk, wiki, conOne), now)
		last = w.Revoke(grants.User(ann), grants.CauseAdmin, now)
	}
	other := w.Revoke(grants.User(ben), grants.CauseAdmin, day.Add(time.Minute))
	st := w.statement(t, conOne, day.Add(time.Minute))
	want := []grant.Revocation{
		{Sequence: last.Sequence, Kind: grant.TargetUser, Target: string(ann), At: last.At},
		{Sequence: other.Sequence, Kind: grant.TargetUser, Target: string(ben), At: other.At},
	}
	if diff := cmp.Diff(want, st.Revocations); diff != "" || st.Revoked != other.Sequence {
		t.Errorf("revocations up to %d (-want +got):\n%s", st.Revoked, diff)
	}
}

// A clock went back over a restart: the connector knows more.
func TestConnectorKnowsMore(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), 1, day)
	known := w.Sequence() + 5
	w.Attach(conOne, grants.Applied{Epoch: 1, Revoked: known})
	if st := w.statement(t, conOne, day); st.Revoked != known || st.From != known {
		t.Errorf("statement goes back: %+v", st)
	}
	if r := w.Revoke(grants.User(ann), grants.CauseAdmin, day); r.Sequence != known+1 {
		t.Errorf("next sequence = %d, want %d", r.Sequence, known+1)
	}
	w.Attach(conTwo, grants.Applied{Epoch: 1, Revoked: 1 << 50})
	if got := w.Sequence(); got != known+1 {
		t.Errorf("a wild connector raised the sequence to %d", got)
	}
	w.Attach(conTwo, grants.Applied{Epoch: 2, Revoked: known + 100})
	if got := w.Sequence(); got != known+1 {
		t.Errorf("a connector of another epoch raised the sequence to %d", got)
	}
}

func TestManyRevocationsComeInParts(t *testing.T) {
	w := newWorld(t, nowhere{}, 1, day)
	const n = 1500
	for i := range n {
		key := ids.KeyIDOf(fmt.Append(nil, i))
		w.issue(t, wish(ann, annSes, key, wiki, conOne), day)
		w.Revoke(grants.Device(key), grants.CauseAdmin, day)
	}
	w.Attach(conOne, grants.Applied{Epoch: 1})
	all := w.Statements(conOne, day)
	next, heard := uint64(0), 0
	for i, envelope := range all {
		if len(envelope) > seal.MaxEnvelope {
			t.Errorf("statement %d has %d bytes", i, len(envelope))
		}
		st := w.open(t, envelope)
		if st.From != next {
			t.Errorf("statement %d begins at %d, want %d", i, st.From, next)
		}
		if last := i == len(all)-1; last != (st.Until.Sub(day) == time.Minute) {
			t.Errorf("statement %d holds until %v", i, st.Until)
		}
		next, heard = st.Revoked, heard+len(st.Revocations)
	}
	if len(all) != 3 || heard != n || next != w.Sequence() {
		t.Errorf("%d statements with %d revocations up to %d", len(all), heard, next)
	}
	// With a promise made, the parts repeat it and do not cut running flows.
	if st := w.open(t, w.Statements(conOne, day.Add(time.Second))[0]); !st.Until.Equal(day.Add(time.Minute)) {
		t.Errorf("a part holds until %v, want what was promised", st.Until)
	}
}

func TestEverythingIsVoid(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		w := newWorld(t, open(), 1, day)
		old := w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
		w.Revoke(grants.Everything(), grants.CauseRestore, day)
		w.flush(t)
		fresh := w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
		for i, x := range []world{w, newWorld(t, open(), 2, day)} {
			st := x.statement(t, conOne, day)
			if !old.Issued.Before(st.VoidBefore) || fresh.Issued.Before(st.VoidBefore) || len(st.Revocations) != 0 {
				t.Errorf("world %d: void before %v, grants of %v and %v", i, st.VoidBefore, old.Issued, fresh.Issued)
			}
			if _, live := x.Grant(old.ID); live || x.Len() != 1 {
				t.Errorf("world %d: %d live grants, want the fresh one", i, x.Len())
			}
		}
	})
}

// site is a catalog with two sites and an app at each and at both.
func site(t *testing.T, s *store.Store) (*catalog.Catalog, catalog.Site, catalog.Site) {
	t.Helper()
	c := catalog.New(catalog.Config{Store: s})
	one, err := c.CreateSite(t.Context(), "berlin")
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.CreateSite(t.Context(), "paris")
	if err != nil {
		t.Fatal(err)
	}
	place := func(s catalog.Site, target string) catalog.Placement {
		tg, err := catalog.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		return catalog.Placement{Site: s.ID, Targets: []catalog.Target{tg}}
	}
	for _, a := range []catalog.App{
		{Name: "wiki", Ports: []catalog.PortRange{{First: 80, Last: 80}}, Placements: []catalog.Placement{place(one, "10.1.0.1:8080"), place(two, "10.2.0.1:80")}},
		{Name: "git", Placements: []catalog.Placement{place(two, "git.lan:22")}},
		{Name: "dns", Protocol: catalog.Both, Placements: []catalog.Placement{place(one, "10.1.0.53:53")}},
	} {
		if _, err := c.CreateApp(t.Context(), a, day); err != nil {
			t.Fatal(err)
		}
	}
	return c, one, two
}

func TestAssignmentHoldsOneSite(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := newWorld(t, s, 1, day)
		c, one, _ := site(t, s)
		con := registry.Connector{ID: conOne, Site: one.ID, State: registry.Active}
		assigned, err := w.Assignment(t.Context(), con, c.Current())
		if err != nil {
			t.Fatal(err)
		}
		a, err := grant.OpenAssignment(w.keys, assigned.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, app := range a.Apps {
			for _, tg := range app.Targets {
				got = append(got, fmt.Sprintf("%s %s %d-%d %s %d gateway=%v", app.Name, tg.Ports.Network, tg.Ports.First, tg.Ports.Last, tg.Host, tg.Base, app.Gateway))
			}
		}
		want := []string{
			"dns tcp 53-53 10.1.0.53 53 gateway=false", "dns udp 53-53 10.1.0.53 53 gateway=false",
			"wiki tcp 80-80 10.1.0.1 8080 gateway=false",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("assignment (-want +got):\n%s", diff)
		}
		for _, state := range []registry.State{registry.Blocked, registry.Removed, ""} {
			con.State = state
			if got, err := w.Assignment(t.Context(), con, c.Current()); err == nil || got.Envelope != nil {
				t.Errorf("a connector in state %q got an assignment", state)
			}
		}
	})
}

func TestAssignmentVersion(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		c, one, two := site(t, s)
		con := registry.Connector{ID: conOne, Site: one.ID, State: registry.Active}
		version := func(con registry.Connector) uint64 {
			t.Helper()
			a, err := newWorld(t, open(), 1, day).Assignment(t.Context(), con, c.Current())
			if err != nil {
				t.Fatal(err)
			}
			return a.Version
		}
		if got := []uint64{version(con), version(con)}; !slices.Equal(got, []uint64{1, 1}) {
			t.Errorf("versions %v without a change, want 1, 1", got)
		}
		git, _ := c.Current().Lookup("git")
		edit := *git
		edit.Owner.Text = "somebody"
		edit.Placements = []catalog.Placement{{Site: two.ID, Targets: []catalog.Target{{Host: "git2.lan", Port: 22}}}}
		if _, err := c.UpdateApp(t.Context(), edit, day); err != nil {
			t.Fatal(err)
		}
		if got := version(con); got != 1 {
			t.Errorf("version %d after a change at the other site, want 1", got)
		}
		wiki, _ := c.Current().Lookup("wiki")
		gone := *wiki
		gone.Retired = true
		if _, err := c.UpdateApp(t.Context(), gone, day); err != nil {
			t.Fatal(err)
		}
		if got := version(con); got != 2 {
			t.Errorf("version %d after an app retired, want 2", got)
		}
		con.Site = two.ID
		if got := version(con); got != 3 {
			t.Errorf("version %d after a move, want 3", got)
		}
	})
}

func TestAssignmentTooLarge(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, s, 1, day)
	c, one, _ := site(t, s)
	host := fmt.Sprintf("%s.%s.%s.lan", longLabel('a'), longLabel('b'), longLabel('c'))
	for i := range 6 {
		a := catalog.App{Name: fmt.Sprintf("big%d", i), Placements: []catalog.Placement{{Site: one.ID}}}
		for j := range 60 {
			a.Placements[0].Targets = append(a.Placements[0].Targets, catalog.Target{Host: host, Port: uint16(1000 + 2*j)})
		}
		if _, err := c.CreateApp(t.Context(), a, day); err != nil {
			t.Fatal(err)
		}
	}
	con := registry.Connector{ID: conOne, Site: one.ID, State: registry.Active}
	if _, err := w.Assignment(t.Context(), con, c.Current()); !errors.Is(err, grants.ErrTooLarge) {
		t.Errorf("Assignment = %v, want ErrTooLarge", err)
	}
}

func longLabel(c byte) string { return string(slices.Repeat([]byte{c}, 60)) }

func TestCandidates(t *testing.T) {
	app := &catalog.App{Placements: []catalog.Placement{{Site: "second"}, {Site: "first"}}}
	all := []registry.Connector{
		{ID: "a", Site: "first", State: registry.Active}, {ID: "b", Site: "second", State: registry.Active},
		{ID: "c", Site: "second", State: registry.Blocked}, {ID: "d", Site: "third", State: registry.Active},
	}
	if diff := cmp.Diff([]ids.ConnectorID{"b", "a"}, grants.Candidates(app, all)); diff != "" {
		t.Errorf("candidates: %s", diff)
	}
}
