package scenario

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// says checks that an error tells a person what is wrong and what to do.
func says(t testing.TB, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q does not say %q", what, err, word)
		}
	}
}

// tryJoin joins a connector without starting it.
func (w *world) tryJoin(name, token string) error {
	w.t.Helper()
	store, err := enroll.Open(filepath.Join(w.dir, name))
	if err != nil {
		return err
	}
	_, _, err = store.Join(w.ctx(), enroll.Join{URL: w.broker.URL(), Token: token, Name: name, Version: version})
	if err != nil {
		if _, loaded := store.Load(); !errors.Is(loaded, enroll.ErrNotJoined) {
			w.t.Errorf("%s was refused and still holds a membership: %v", name, loaded)
		}
	}
	return err
}

func (w *world) connectors() int {
	w.t.Helper()
	resp, err := w.admin.connectors.ListConnectors(w.ctx(), connect.NewRequest(&adminv1.ListConnectorsRequest{}))
	return len(must(w.t, resp, err).Connectors)
}

// TestFaultJoinToken: a token that does not fit opens nothing and says what to do about it;
// a good one beside it joins.
func TestFaultJoinToken(t *testing.T) {
	w := newWorld(t)
	good, other := w.site("berlin"), w.token("berlin")
	w.run("wrong", func(t *testing.T) {
		says(t, "cut", w.tryJoin("cut", good[:len(good)-1]), "token_malformed", "the end is missing")
		says(t, "changed", w.tryJoin("changed", changed(good)), "token_malformed", "a character was changed")
		says(t, "empty", w.tryJoin("empty", ""), "token_malformed")
		w.forgetNewestToken()
		says(t, "unknown", w.tryJoin("unknown", other), "token_unknown", "postern admin token add")
	})
	w.run("for a relay", func(t *testing.T) {
		resp, err := w.admin.tokens.CreateToken(w.ctx(), connect.NewRequest(&adminv1.CreateTokenRequest{Role: "relay"}))
		says(t, "relay token", w.tryJoin("relay", must(t, resp, err).Secret), "token_unknown")
	})
	w.run("expired", func(t *testing.T) {
		old := w.token("berlin")
		w.exec(fmt.Sprintf(`UPDATE join_tokens SET expires_at = %d WHERE uses = 0`, time.Now().Add(-time.Minute).UnixMilli()))
		says(t, "expired", w.tryJoin("late", old), "token_expired", "postern admin token add")
	})
	if n := w.connectors(); n != 0 {
		t.Errorf("%d connectors joined with bad tokens", n)
	}
	w.run("used twice at once", func(*testing.T) { w.raceForToken(w.token("berlin")) })
	if n := w.connectors(); n != 1 {
		t.Errorf("%d connectors joined with one token", n)
	}
}

// changed replaces one character of a token's secret by another of the alphabet.
func changed(token string) string {
	i := len(token) - 10
	c := byte('7')
	if token[i] == c {
		c = '8'
	}
	return token[:i] + string(c) + token[i+1:]
}

// forgetNewestToken removes a token's row, as if another broker had made it.
func (w *world) forgetNewestToken() {
	w.t.Helper()
	w.exec(`DELETE FROM join_tokens WHERE created_at = (SELECT max(created_at) FROM join_tokens)`)
}

// raceForToken lets several machines use one token at the same moment: one gets in, the
// others learn that it is used.
func (w *world) raceForToken(token string) {
	const racers = 6
	errs := make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { errs[i] = w.tryJoin(fmt.Sprintf("racer-%d", i), token) })
	}
	wg.Wait()
	joined := 0
	for _, err := range errs {
		if err == nil {
			joined++
			continue
		}
		says(w.t, "a slower one", err, "token_used", "postern admin token add")
	}
	if joined != 1 {
		w.t.Errorf("%d of %d machines joined with a one-time token", joined, racers)
	}
}
