package store_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func newEnroller(s *store.Store) *enroll.Enroller { return enroll.New(s, registry.New(s)) }

func mustToken(t *testing.T, s *store.Store, w enroll.Wish) (enroll.Token, enroll.Text) {
	t.Helper()
	tok, text, err := newEnroller(s).Create(t.Context(), w, day)
	if err != nil {
		t.Fatal(err)
	}
	return tok, text
}

func joiner(name string) registry.Connector {
	return registry.Connector{Name: name, Identity: identity(name)}
}

func TestTokenJoinsOneConnector(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		site := mustSite(t, newCatalog(t, s), "berlin").ID
		_, text := mustToken(t, s, enroll.Wish{Kind: enroll.ForConnector, Site: site, SiteName: "berlin", MayPublish: true})
		e := newEnroller(s)
		// What the connector says about its rights counts for nothing.
		c := joiner("a")
		c.Site, c.State = ids.New[ids.SiteID](), registry.Blocked
		got, err := e.JoinConnector(t.Context(), text, c, day)
		if err != nil || got.Site != site || !got.MayPublish || got.State != registry.Active {
			t.Fatalf("JoinConnector = %+v, %v", got, err)
		}
		again, err := newEnroller(open()).JoinConnector(t.Context(), text, joiner("a"), day)
		if err != nil || again.ID != got.ID {
			t.Errorf("the same key again = %s, %v, want %s", again.ID, err, got.ID)
		}
		if _, err := e.JoinConnector(t.Context(), text, joiner("b"), day); !errors.Is(err, enroll.ErrUsed) {
			t.Errorf("another key = %v, want ErrUsed", err)
		}
		if _, err := registry.New(s).SetConnectorState(t.Context(), got.ID, registry.Removed); err != nil {
			t.Fatal(err)
		}
		if _, err := e.JoinConnector(t.Context(), text, joiner("a"), day); !errors.Is(err, registry.ErrRemoved) {
			t.Errorf("the token brought a removed connector back: %v", err)
		}
	})
}

func TestTokenRefusals(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		e, site := newEnroller(s), mustSite(t, newCatalog(t, s), "berlin").ID
		wish := enroll.Wish{Kind: enroll.ForConnector, Site: site, SiteName: "berlin", TTL: time.Hour}
		revoked, revokedText := mustToken(t, s, wish)
		if err := e.Revoke(t.Context(), revoked.ID, day); err != nil {
			t.Fatal(err)
		}
		_, expiring := mustToken(t, s, wish)
		_, relay := mustToken(t, s, enroll.Wish{Kind: enroll.ForRelay})
		_, elsewhere := mustToken(t, storetest.Open(t, storetest.SQLite(t)), wish)
		cases := []struct {
			name   string
			text   enroll.Text
			now    time.Time
			want   error
			reason string
		}{
			{"revoked", revokedText, day, enroll.ErrRevoked, "token_revoked"},
			{"expired", expiring, day.Add(time.Hour), enroll.ErrExpired, "token_expired"},
			{"other kind", relay, day, enroll.ErrUnknown, "token_unknown"},
			{"other broker", elsewhere, day, enroll.ErrUnknown, "token_unknown"},
			{"empty", enroll.Text{}, day, enroll.ErrMalformed, "token_malformed"},
		}
		for _, c := range cases {
			_, err := e.JoinConnector(t.Context(), c.text, joiner(c.name), c.now)
			if !errors.Is(err, c.want) || enroll.Reason(err) != c.reason {
				t.Errorf("%s: %v (%s), want %v (%s)", c.name, err, enroll.Reason(err), c.want, c.reason)
			}
			if err != nil && !c.text.IsZero() && strings.Contains(err.Error(), c.text.Reveal()) {
				t.Errorf("%s: the error repeats the token", c.name)
			}
		}
		if _, err := e.JoinConnector(t.Context(), expiring, joiner("in time"), day.Add(time.Hour-1)); err != nil {
			t.Errorf("just before the end: %v", err)
		}
		if all, err := registry.New(s).Connectors(t.Context(), ""); err != nil || len(all) != 1 {
			t.Errorf("%d connectors, %v, want the allowed one", len(all), err)
		}
	})
}

func TestOneTimeTokenTwiceAtOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s, second := open(), open()
		site := mustSite(t, newCatalog(t, s), "berlin").ID
		tok, text := mustToken(t, s, enroll.Wish{Kind: enroll.ForConnector, Site: site})
		const machines = 16
		errs := make([]error, machines)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range machines {
			e := newEnroller([]*store.Store{s, second}[i%2])
			wg.Go(func() {
				<-start
				_, errs[i] = e.JoinConnector(t.Context(), text, joiner(fmt.Sprint("machine ", i)), day)
			})
		}
		close(start)
		wg.Wait()
		joined := 0
		for _, err := range errs {
			switch {
			case err == nil:
				joined++
			case !errors.Is(err, enroll.ErrUsed):
				t.Errorf("JoinConnector = %v, want ErrUsed", err)
			}
		}
		all, err := registry.New(s).Connectors(t.Context(), site)
		got, err2 := s.Token(t.Context(), tok.ID)
		if joined != 1 || len(all) != 1 || got.Uses != 1 || err != nil || err2 != nil {
			t.Errorf("%d joined, %d rows, %d uses, want one each (%v, %v)", joined, len(all), got.Uses, err, err2)
		}
	})
}

func TestSiteKeyJoinsMany(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		site := mustSite(t, newCatalog(t, s), "berlin").ID
		tok, text := mustToken(t, s, enroll.Wish{Kind: enroll.ForConnector, Site: site, Multi: true})
		e := newEnroller(s)
		for _, name := range []string{"a", "b", "a"} {
			if _, err := e.JoinConnector(t.Context(), text, joiner(name), day); err != nil {
				t.Fatalf("join %s: %v", name, err)
			}
		}
		if got, err := s.Token(t.Context(), tok.ID); err != nil || got.Uses != 2 {
			t.Errorf("%d uses, %v, want 2", got.Uses, err)
		}
		if err := e.Revoke(t.Context(), tok.ID, day); err != nil {
			t.Fatal(err)
		}
		if _, err := e.JoinConnector(t.Context(), text, joiner("c"), day); !errors.Is(err, enroll.ErrRevoked) {
			t.Errorf("after revoking = %v, want ErrRevoked", err)
		}
	})
}

func TestFailedEnrolmentKeepsTheToken(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		site := mustSite(t, newCatalog(t, s), "berlin").ID
		_, text := mustToken(t, s, enroll.Wish{Kind: enroll.ForConnector, Site: site})
		e := newEnroller(s)
		if _, err := e.JoinConnector(t.Context(), text, registry.Connector{Name: "no key"}, day); err == nil {
			t.Fatal("a connector without a key joined")
		}
		if _, err := e.JoinConnector(t.Context(), text, joiner("a"), day); err != nil {
			t.Errorf("the token is gone after a failed try: %v", err)
		}
	})
}

func TestRelayJoins(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		_, text := mustToken(t, s, enroll.Wish{Kind: enroll.ForRelay, SiteName: "relay"})
		r := registry.Relay{Identity: identity("r"), HPKE: []byte{1}, UDP: []string{"192.0.2.1:443"}}
		if got, err := newEnroller(s).JoinRelay(t.Context(), text, r, day); err != nil || got.State != registry.Active {
			t.Errorf("JoinRelay = %+v, %v", got, err)
		}
		if _, err := newEnroller(s).JoinConnector(t.Context(), text, joiner("a"), day); !errors.Is(err, enroll.ErrUnknown) {
			t.Errorf("a relay's token joined a connector: %v", err)
		}
	})
}
