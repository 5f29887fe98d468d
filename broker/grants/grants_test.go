package grants_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// day has no part of a millisecond, as everything that goes over the wire.
var day = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)

// world is one ledger over one store, and the key that opens what it signs.
type world struct {
	*grants.Ledger
	store grants.Store
	keys  seal.Keys
}

// signer is the same in each test: a fixed seed.
func signer() *seal.Signer {
	return seal.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
}

func newWorld(t testing.TB, s grants.Store, epoch uint64, now time.Time) world {
	t.Helper()
	sign := signer()
	l, err := grants.New(grants.Config{Store: s, Signer: sign, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Load(t.Context(), epoch, now); err != nil {
		t.Fatal(err)
	}
	return world{Ledger: l, store: s, keys: seal.NewKeys(sign.Public())}
}

var (
	ann, ben     = ids.New[ids.UserID](), ids.New[ids.UserID]()
	annSes       = ids.New[ids.SessionID]()
	benSes       = ids.New[ids.SessionID]()
	wiki, git    = ids.New[ids.AppID](), ids.New[ids.AppID]()
	conOne       = ids.New[ids.ConnectorID]()
	conTwo       = ids.New[ids.ConnectorID]()
	laptop, desk = ids.KeyIDOf([]byte("laptop")), ids.KeyIDOf([]byte("desk"))
)

// wish is a request for a grant that holds for 8 hours.
func wish(user ids.UserID, s ids.SessionID, key ids.KeyID, app ids.AppID, cons ...ids.ConnectorID) grants.Grant {
	return grants.Grant{
		Receipt: ids.NewReceipt(), Session: s, User: user, Device: "dev_x", PeerKind: grant.PeerDevice, PeerKey: key,
		App: app, AppName: "wiki", Ports: []grant.Ports{{Network: grant.TCP, First: 80, Last: 80}}, Verbs: []string{"connect"},
		Connectors: cons, HardEnd: day.Add(8 * time.Hour), Outage: catalog.Outage{Mode: grant.OutageCut},
	}
}

func (w world) issue(t testing.TB, g grants.Grant, now time.Time) *grants.Grant {
	t.Helper()
	out, _, err := w.Issue(t.Context(), g, w.Sequence(), now)
	if err != nil {
		t.Fatalf("Issue: %v", err)
	}
	return out
}

// flush makes all revocations durable.
func (w world) flush(t testing.TB) {
	t.Helper()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

// statement opens the only statement for a connector.
func (w world) statement(t testing.TB, c ids.ConnectorID, now time.Time) *grant.Statement {
	t.Helper()
	all := w.Statements(c, now)
	if len(all) != 1 {
		t.Fatalf("%d statements, want 1", len(all))
	}
	return w.open(t, all[0])
}

func (w world) open(t testing.TB, envelope []byte) *grant.Statement {
	t.Helper()
	st, err := grant.OpenStatement(w.keys, envelope)
	if err != nil {
		t.Fatalf("open statement: %v", err)
	}
	return st
}

func TestIssueIsDurableAndSigned(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		w := newWorld(t, open(), 1, day)
		asked := wish(ann, annSes, laptop, wiki, conOne, conTwo)
		asked.ReEvaluateAt, asked.Flows, asked.BytesPerSecond = day.Add(time.Hour), 5, 1000
		asked.OpensPerMinute, asked.Idle, asked.Source = 600, time.Hour, netip.MustParseAddr("192.0.2.7")
		g, envelope, err := w.Issue(t.Context(), asked, 0, day)
		if err != nil {
			t.Fatal(err)
		}
		wire, err := grant.Open(w.keys, envelope)
		if err != nil {
			t.Fatalf("open the envelope: %v", err)
		}
		if wire.ID != g.ID || !wire.NotBefore.Equal(day) || !wire.HardEnd.Equal(asked.HardEnd) || wire.PeerKey != laptop || wire.Flows != 5 ||
			wire.OpensPerMinute != 600 || wire.Idle != time.Hour {
			t.Errorf("envelope holds %+v", wire)
		}
		again := newWorld(t, open(), 1, day)
		got, ok := again.Grant(g.ID)
		if !ok {
			t.Fatal("the grant is gone after a restart")
		}
		sameAddr := cmp.Comparer(func(x, y netip.Addr) bool { return x == y })
		if diff := cmp.Diff(g, got, sameAddr); diff != "" {
			t.Errorf("grant after a restart (-want +got):\n%s", diff)
		}
		if !slices.Equal(again.Envelope(got), envelope) {
			t.Error("the envelope differs after a restart")
		}
		again.SetSource(g.ID, netip.MustParseAddr("2001:db8::7"))
		if moved, _ := again.Grant(g.ID); moved.Source != netip.MustParseAddr("2001:db8::7") || !slices.Equal(again.Envelope(moved), envelope) {
			t.Errorf("after a move: %+v", moved)
		}
		if found, ok := again.Find(annSes, wiki, day); !ok || found.ID != g.ID {
			t.Error("Find does not find the grant")
		}
		if _, ok := again.Find(annSes, git, day); ok {
			t.Error("Find found a grant for another app")
		}
		if _, ok := again.Find(annSes, wiki, asked.HardEnd); ok {
			t.Error("Find found a grant past its hard end")
		}
	})
}

func TestIssueRefuses(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), 1, day)
	cases := []struct {
		name string
		edit func(*grants.Grant)
	}{
		{"no user", func(g *grants.Grant) { g.User = "" }},
		{"no session", func(g *grants.Grant) { g.Session = "" }},
		{"no receipt", func(g *grants.Grant) { g.Receipt = "" }},
		{"no app", func(g *grants.Grant) { g.App = "" }},
		{"no key", func(g *grants.Grant) { g.PeerKey = ids.KeyID{} }},
		{"unknown peer", func(g *grants.Grant) { g.PeerKind = 9 }},
		{"no ports", func(g *grants.Grant) { g.Ports = nil }},
		{"no verbs", func(g *grants.Grant) { g.Verbs = nil }},
		{"no connector", func(g *grants.Grant) { g.Connectors = nil }},
		{"no outage mode", func(g *grants.Grant) { g.Outage.Mode = 0 }},
		{"ended", func(g *grants.Grant) { g.HardEnd = day }},
		{"too long", func(g *grants.Grant) { g.HardEnd = day.Add(25 * time.Hour) }},
	}
	for _, c := range cases {
		g := wish(ann, annSes, laptop, wiki, conOne)
		c.edit(&g)
		if _, envelope, err := w.Issue(t.Context(), g, 0, day); !errors.Is(err, grants.ErrInvalid) || envelope != nil {
			t.Errorf("%s: %v, want ErrInvalid", c.name, err)
		}
	}
	if w.Len() != 0 {
		t.Errorf("%d grants are live", w.Len())
	}
}

func TestRevokeEndsExactlyTheTarget(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		type made struct{ annWiki, annGit, benWiki *grants.Grant }
		cases := []struct {
			name   string
			target func(made) grants.Target
			ended  func(made) []*grants.Grant
			cons   []ids.ConnectorID
		}{
			{"user", func(made) grants.Target { return grants.User(ann) }, func(m made) []*grants.Grant { return []*grants.Grant{m.annWiki, m.annGit} }, []ids.ConnectorID{conOne, conTwo}},
			{"device", func(made) grants.Target { return grants.Device(desk) }, func(m made) []*grants.Grant { return []*grants.Grant{m.benWiki} }, []ids.ConnectorID{conOne}},
			{"session", func(made) grants.Target { return grants.Session(annSes) }, func(m made) []*grants.Grant { return []*grants.Grant{m.annWiki, m.annGit} }, []ids.ConnectorID{conOne, conTwo}},
			{"grant", func(m made) grants.Target { return grants.One(m.annGit.ID) }, func(m made) []*grants.Grant { return []*grants.Grant{m.annGit} }, []ids.ConnectorID{conTwo}},
			{"app", func(made) grants.Target { return grants.App(wiki) }, func(m made) []*grants.Grant { return []*grants.Grant{m.annWiki, m.benWiki} }, []ids.ConnectorID{conOne}},
			{"everything", func(made) grants.Target { return grants.Everything() }, func(m made) []*grants.Grant { return []*grants.Grant{m.annWiki, m.annGit, m.benWiki} }, []ids.ConnectorID{conOne, conTwo}},
			{"nobody", func(made) grants.Target { return grants.User(ids.New[ids.UserID]()) }, func(made) []*grants.Grant { return nil }, nil},
		}
		s := open()
		for i, c := range cases {
			now := day.Add(time.Duration(i) * time.Minute)
			w := newWorld(t, s, 1, now)
			w.Revoke(grants.Everything(), grants.CauseAdmin, now)
			w.flush(t)
			m := made{
				annWiki: w.issue(t, wish(ann, annSes, laptop, wiki, conOne), now),
				annGit:  w.issue(t, wish(ann, annSes, laptop, git, conTwo), now),
				benWiki: w.issue(t, wish(ben, benSes, desk, wiki, conOne), now),
			}
			effect := w.Revoke(c.target(m), grants.CauseAdmin, now)
			want := idsOf(c.ended(m))
			if diff := cmp.Diff(want, idsOf(effect.Grants)); diff != "" {
				t.Errorf("%s: ended (-want +got):\n%s", c.name, diff)
			}
			slices.Sort(c.cons)
			if !slices.Equal(c.cons, effect.Connectors) {
				t.Errorf("%s: connectors %v, want %v", c.name, effect.Connectors, c.cons)
			}
			w.flush(t)
			checkSurvivors(t, c.name, []world{w, newWorld(t, s, 1, now)}, []*grants.Grant{m.annWiki, m.annGit, m.benWiki}, want)
		}
	})
}

// checkSurvivors checks that in each world exactly the grants that were not ended live.
func checkSurvivors(t *testing.T, name string, worlds []world, all []*grants.Grant, ended []ids.GrantID) {
	t.Helper()
	for i, w := range worlds {
		for _, g := range all {
			_, live := w.Grant(g.ID)
			if live == slices.Contains(ended, g.ID) {
				t.Errorf("%s: world %d: grant live %v, ended %v", name, i, live, !live)
			}
			row, err := w.store.Grant(t.Context(), g.ID)
			if err != nil || (row.State == grants.Live) != live {
				t.Errorf("%s: world %d: row is %s, %v, in memory live %v", name, i, row.State, err, live)
			}
		}
	}
}

func idsOf(list []*grants.Grant) []ids.GrantID {
	var out []ids.GrantID
	for _, g := range list {
		out = append(out, g.ID)
	}
	slices.Sort(out)
	return out
}

func TestIssueAfterRevocation(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := newWorld(t, s, 1, day)
		since := w.Sequence()
		w.Revoke(grants.User(ann), grants.CauseUserDisabled, day)
		if _, envelope, err := w.Issue(t.Context(), wish(ann, annSes, laptop, wiki, conOne), since, day); !errors.Is(err, grants.ErrRevoked) || envelope != nil {
			t.Errorf("a decision from before the revocation = %v, want ErrRevoked", err)
		}
		if _, _, err := w.Issue(t.Context(), wish(ben, benSes, desk, wiki, conOne), since, day); err != nil {
			t.Errorf("another user with the same decision time: %v", err)
		}
		// A decision from after it is good, in the same millisecond and with a clock that
		// went back.
		for _, now := range []time.Time{day, day.Add(-time.Hour)} {
			g := w.issue(t, wish(ann, annSes, laptop, wiki, conOne), now)
			st := w.statement(t, conOne, now)
			wire, err := grant.Open(w.keys, w.Envelope(g))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range st.Revocations {
				if r.Matches(wire) {
					t.Errorf("the connector would end a grant issued after the revocation %+v", r)
				}
			}
			w.flush(t)
			if _, ok := newWorld(t, s, 1, now).Grant(g.ID); !ok {
				t.Error("the grant is gone after a restart")
			}
		}
	})
}

func TestClockGoesBackBeforeRevocation(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), 1, day)
	g := w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day.Add(time.Hour))
	effect := w.Revoke(grants.User(ann), grants.CauseAdmin, day)
	if len(effect.Grants) != 1 {
		t.Fatal("the grant outlived a revocation with an earlier clock")
	}
	wire, err := grant.Open(w.keys, w.Envelope(g))
	if err != nil {
		t.Fatal(err)
	}
	if st := w.statement(t, conOne, day); len(st.Revocations) != 1 || !st.Revocations[0].Matches(wire) {
		t.Error("the connector would keep the grant")
	}
}

// slowStore lets a test act while a grant is being written.
type slowStore struct {
	grants.Store
	during func()
}

func (s *slowStore) InsertGrant(ctx context.Context, g grants.Grant) error {
	err := s.Store.InsertGrant(ctx, g)
	s.during()
	return err
}

func TestRevocationCrossesTheWrite(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		slow := &slowStore{Store: s}
		w := newWorld(t, slow, 1, day)
		slow.during = func() {
			w.Revoke(grants.Session(annSes), grants.CauseLogout, day)
			w.flush(t)
			// A load in this moment must not bring the grant to life either.
			if err := w.Load(t.Context(), 1, day); err != nil {
				t.Error(err)
			}
		}
		_, envelope, err := w.Issue(t.Context(), wish(ann, annSes, laptop, wiki, conOne), w.Sequence(), day)
		if !errors.Is(err, grants.ErrRevoked) || envelope != nil {
			t.Errorf("Issue = %v, want ErrRevoked", err)
		}
		w.flush(t)
		if w.Len() != 0 || newWorld(t, s, 1, day).Len() != 0 {
			t.Error("the grant lives")
		}
		live, err := s.LiveGrants(t.Context(), day)
		if err != nil || len(live) != 0 {
			t.Errorf("%d live rows, %v", len(live), err)
		}
	})
}

// TestRevokedSince: what revocations have ended is known over a restart, with the time; what
// lives is not in the list.
func TestRevokedSince(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := newWorld(t, s, 1, day)
		gone := w.issue(t, wish(ann, annSes, laptop, wiki, conOne, conTwo), day)
		w.Revoke(grants.One(gone.ID), grants.CauseAdmin, day.Add(time.Minute))
		w.issue(t, wish(ben, benSes, desk, wiki, conOne), day.Add(time.Hour))
		w.flush(t)
		again := newWorld(t, s, 1, day)
		list, err := again.RevokedSince(t.Context(), day)
		if err != nil || len(list) != 1 {
			t.Fatalf("%d grants, %v", len(list), err)
		}
		if r := list[0]; r.Grant.ID != gone.ID || !r.At.Equal(day.Add(time.Minute)) || r.Grant.PeerKey != laptop || len(r.Grant.Connectors) != 2 {
			t.Errorf("RevokedSince = %+v", r)
		}
		if list, err := again.RevokedSince(t.Context(), day.Add(time.Minute)); err != nil || len(list) != 0 {
			t.Errorf("after it: %d grants, %v", len(list), err)
		}
	})
}

// fullStore fails every write while full.
type fullStore struct {
	grants.Store
	mu   sync.Mutex
	full bool
}

var errFull = errors.New("no space left")

func (s *fullStore) set(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

func (s *fullStore) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return errFull
	}
	return nil
}

func (s *fullStore) InsertGrant(ctx context.Context, g grants.Grant) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.Store.InsertGrant(ctx, g)
}

func (s *fullStore) SaveRevocations(ctx context.Context, list []grants.Revocation) error {
	if err := s.err(); err != nil {
		return err
	}
	return s.Store.SaveRevocations(ctx, list)
}

func TestFullDisk(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		full := &fullStore{Store: s}
		w := newWorld(t, full, 1, day)
		g := w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
		full.set(true)
		if _, envelope, err := w.Issue(t.Context(), wish(ben, benSes, desk, wiki, conOne), w.Sequence(), day); !errors.Is(err, errFull) || envelope != nil {
			t.Errorf("Issue on a full disk = %v, want the error", err)
		}
		effect := w.Revoke(grants.User(ann), grants.CauseUserDisabled, day)
		if len(effect.Grants) != 1 || w.Len() != 0 {
			t.Error("the revocation had no effect on a full disk")
		}
		if st := w.statement(t, conOne, day); len(st.Revocations) != 1 || st.Revoked != effect.Sequence {
			t.Errorf("statement on a full disk: %+v", st)
		}
		if err := w.Flush(t.Context()); !errors.Is(err, errFull) || w.Queued() != 1 {
			t.Errorf("Flush = %v, %d queued", err, w.Queued())
		}
		// Nothing that is not durable is forgotten, however old.
		if err := w.Tidy(t.Context(), day.Add(100*time.Hour)); err != nil {
			t.Fatal(err)
		}
		full.set(false)
		w.flush(t)
		row, err := s.Grant(t.Context(), g.ID)
		if err != nil || row.State == grants.Live || w.Queued() != 0 {
			t.Errorf("row is %s, %v, %d queued", row.State, err, w.Queued())
		}
	})
}

func TestRunFlushesAndEnds(t *testing.T) {
	s := storetest.Open(t, storetest.SQLite(t))
	saved := make(chan struct{}, 1)
	w := newWorld(t, &watchedStore{Store: s, saved: saved}, 1, day)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	w.Revoke(grants.User(ann), grants.CauseAdmin, day)
	<-saved
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	w.Revoke(grants.User(ben), grants.CauseAdmin, day)
	if err := w.Run(ctx); err != nil || w.Queued() != 0 {
		t.Errorf("Run after the end = %v, %d queued: the last flush is missing", err, w.Queued())
	}
}

type watchedStore struct {
	grants.Store
	saved chan struct{}
}

func (s *watchedStore) SaveRevocations(ctx context.Context, list []grants.Revocation) error {
	err := s.Store.SaveRevocations(ctx, list)
	select {
	case s.saved <- struct{}{}:
	default:
	}
	return err
}

func TestConcurrentIssueAndRevoke(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := newWorld(t, s, 1, day)
		var wg sync.WaitGroup
		var mu sync.Mutex
		ended := map[ids.GrantID]bool{}
		for i := range 4 {
			wg.Go(func() {
				user, ses := ids.New[ids.UserID](), ids.New[ids.SessionID]()
				for range 10 {
					g := wish(user, ses, laptop, wiki, conOne)
					if _, _, err := w.Issue(t.Context(), g, w.Sequence(), day); err != nil && !errors.Is(err, grants.ErrRevoked) {
						t.Errorf("Issue: %v", err)
					}
				}
				for _, g := range w.Revoke(grants.User(user), grants.CauseAdmin, day.Add(time.Duration(i))).Grants {
					mu.Lock()
					ended[g.ID] = true
					mu.Unlock()
				}
				if err := w.Flush(t.Context()); err != nil {
					t.Errorf("Flush: %v", err)
				}
			})
		}
		wg.Wait()
		if w.Len() != 0 || len(ended) != 40 {
			t.Errorf("%d live, %d ended, want 0 and 40", w.Len(), len(ended))
		}
		again := newWorld(t, s, 1, day)
		if again.Len() != 0 || again.Sequence() != w.Sequence() {
			t.Errorf("after a restart %d live, sequence %d, want 0 and %d", again.Len(), again.Sequence(), w.Sequence())
		}
	})
}

func TestTwoBrokersTakeOneSequence(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		one, two := newWorld(t, open(), 1, day), newWorld(t, open(), 1, day)
		g := one.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
		h := two.issue(t, wish(ben, benSes, desk, wiki, conOne), day)
		first := one.Revoke(grants.User(ann), grants.CauseAdmin, day)
		if second := two.Revoke(grants.User(ben), grants.CauseAdmin, day); second.Sequence != first.Sequence {
			t.Fatalf("sequences %d and %d, want a clash", first.Sequence, second.Sequence)
		}
		one.flush(t)
		two.flush(t)
		if two.Sequence() != first.Sequence+1 {
			t.Errorf("sequence of the second broker = %d, want %d", two.Sequence(), first.Sequence+1)
		}
		again := newWorld(t, open(), 1, day)
		for _, id := range []ids.GrantID{g.ID, h.ID} {
			if _, live := again.Grant(id); live {
				t.Errorf("grant %s outlived its revocation", id)
			}
		}
		if err := one.Load(t.Context(), 1, day); err != nil || one.Sequence() != two.Sequence() {
			t.Errorf("the first broker after a load: sequence %d, %v", one.Sequence(), err)
		}
	})
}

func TestTidyAndDue(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		w := newWorld(t, s, 1, day)
		g := w.issue(t, wish(ann, annSes, laptop, wiki, conOne), day)
		if err := w.SetReEvaluate(t.Context(), g.ID, day.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if due, next := w.Due(day); len(due) != 0 || !next.Equal(day.Add(time.Hour)) {
			t.Errorf("Due = %d, next %v", len(due), next)
		}
		if due, next := newWorld(t, open(), 1, day).Due(day.Add(time.Hour)); len(due) != 1 || !next.IsZero() {
			t.Errorf("Due after a restart = %d, next %v", len(due), next)
		}
		if err := w.SetReEvaluate(t.Context(), ids.New[ids.GrantID](), day); !errors.Is(err, grants.ErrNotFound) {
			t.Errorf("SetReEvaluate of an unknown grant = %v", err)
		}
		effect := w.Revoke(grants.User(ben), grants.CauseAdmin, day)
		w.flush(t)
		end := day.Add(24 * time.Hour)
		if err := w.Tidy(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		if row, err := s.Grant(t.Context(), g.ID); err != nil || row.State != grants.Expired || w.Len() != 0 {
			t.Errorf("row %s, %v, %d live", row.State, err, w.Len())
		}
		if list, _, err := s.Revocations(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("%d revocations, %v: it may still matter", len(list), err)
		}
		if err := w.Tidy(t.Context(), end.Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		list, last, err := s.Revocations(t.Context())
		if err != nil || len(list) != 0 || last != effect.Sequence || newWorld(t, open(), 1, day).Sequence() != effect.Sequence {
			t.Errorf("%d revocations, last %d, %v: the sequence must outlive them", len(list), last, err)
		}
		if err := w.Tidy(t.Context(), end.Add(8*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Grant(t.Context(), g.ID); !errors.Is(err, grants.ErrNotFound) {
			t.Errorf("row after a week = %v, want ErrNotFound", err)
		}
		// A decision from before what was forgotten cannot be checked, so it is refused.
		late := wish(ann, annSes, laptop, wiki, conOne)
		late.HardEnd = end.Add(10 * time.Hour)
		if _, _, err := w.Issue(t.Context(), late, 0, end.Add(time.Hour)); !errors.Is(err, grants.ErrRevoked) {
			t.Errorf("Issue with an ancient sequence = %v, want ErrRevoked", err)
		}
	})
}

// nowhere is a store that keeps nothing, for the speed of the memory part.
type nowhere struct{ grants.Store }

func (nowhere) InsertGrant(context.Context, grants.Grant) error               { return nil }
func (nowhere) LiveGrants(context.Context, time.Time) ([]grants.Grant, error) { return nil, nil }
func (nowhere) Revocations(context.Context) ([]grants.Revocation, uint64, error) {
	return nil, 0, nil
}

func BenchmarkRevoke(b *testing.B) {
	const users, apps = 500, 20
	fill := func(b *testing.B) (world, []ids.UserID, []ids.AppID) {
		w := newWorld(b, nowhere{}, 1, day)
		us, as := make([]ids.UserID, users), make([]ids.AppID, apps)
		for i := range as {
			as[i] = ids.New[ids.AppID]()
		}
		for i := range us {
			us[i] = ids.New[ids.UserID]()
			ses, key := ids.New[ids.SessionID](), ids.KeyIDOf(fmt.Append(nil, i))
			for _, app := range as {
				w.issue(b, wish(us[i], ses, key, app, conOne, conTwo), day)
			}
		}
		return w, us, as
	}
	run := func(name string, most int, target func(us []ids.UserID, as []ids.AppID, i int) grants.Target) {
		b.Run(name, func(b *testing.B) {
			var w world
			var us []ids.UserID
			var as []ids.AppID
			for i := 0; b.Loop(); i++ {
				if i%most == 0 {
					b.StopTimer()
					w, us, as = fill(b)
					b.StartTimer()
				}
				w.Revoke(target(us, as, i%most), grants.CauseAdmin, day)
			}
		})
	}
	run("user of 10000", users, func(us []ids.UserID, _ []ids.AppID, i int) grants.Target { return grants.User(us[i]) })
	run("app of 10000", apps, func(_ []ids.UserID, as []ids.AppID, i int) grants.Target { return grants.App(as[i]) })
}
