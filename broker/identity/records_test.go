package identity_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// testAudit keeps what is recorded; a broken one records nothing that must be.
type testAudit struct {
	mu     sync.Mutex
	events []audit.Event
	broken bool
}

func (a *testAudit) Append(_ context.Context, e audit.Event) (audit.Ref, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return audit.Ref{}, errors.New("disk full")
	}
	a.events = append(a.events, e)
	return audit.Ref{}, nil
}

func (a *testAudit) AppendBestEffort(e audit.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
}

// take returns what was recorded since the last call; nothing typed as a password is in it.
func (w *world) take() []audit.Event {
	w.t.Helper()
	w.audit.mu.Lock()
	defer w.audit.mu.Unlock()
	out := w.audit.events
	w.audit.events = nil
	for _, e := range out {
		line, err := json.Marshal(e)
		if err != nil {
			w.t.Fatal(err)
		}
		if text := string(line) + e.Personal["address"]; strings.Contains(text, "horse") || strings.Contains(text, password) {
			w.t.Errorf("the record holds a password: %s", text)
		}
	}
	return out
}

// TestRefusedSignInsAreRecorded: each with its reason and, for administrators, its user; what
// was typed is not there, for it may be a password in the wrong field.
func TestRefusedSignInsAreRecorded(t *testing.T) {
	w := newWorld(t)
	ann := w.ann()
	w.take()
	for _, c := range []struct {
		who    identitytest.Person
		user   ids.UserID
		reason string
	}{
		{identitytest.Person{Login: "ann", Password: "incorrect horse"}, ann.ID, "identity_unverified"},
		{identitytest.Person{Login: "my horse password", Password: "x"}, "", "identity_unverified"},
	} {
		if _, err := identitytest.SignIn(t.Context(), w.target, c.who); err == nil {
			t.Fatal("a wrong password signed in")
		}
		got := w.take()
		if len(got) != 1 || got[0].Kind != chain.SignInFailed || got[0].User != c.user || strings.Join(got[0].Reasons, " ") != c.reason ||
			got[0].Details["idp"] != "local" || got[0].Personal["address"] != "127.0.0.1" {
			t.Errorf("%s: %+v", c.who.Login, got)
		}
	}
	for range 7 {
		_, _ = identitytest.SignIn(t.Context(), w.target, identitytest.Person{Login: "ann", Password: "incorrect horse"})
	}
	if got := w.take(); len(got) != 7 || strings.Join(got[6].Reasons, " ") != "throttled" || got[6].User != "" {
		t.Errorf("throttled: %+v", got)
	}
	if _, err := identitytest.SignIn(t.Context(), w.target, identitytest.Person{Login: "bob", Password: "x"}); err == nil {
		t.Error("bob does not exist")
	}
	w.audit.broken = true // a refusal never waits for its record
	if got := w.take(); len(got) != 1 {
		t.Errorf("after the throttle: %+v", got)
	}
}

// TestOwnerIsRecordedFirst: a set-up that cannot be recorded makes nobody owner and leaves
// the code for another try.
func TestOwnerIsRecordedFirst(t *testing.T) {
	w := newWorld(t)
	code, err := w.svc.NewOwnerCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	form := identitytest.Owner{Login: "root", Password: password, People: "bob\n"}
	w.audit.broken = true
	if _, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), form); err == nil {
		t.Error("an owner was made without a record")
	}
	if _, err := w.dir.UserByLogin(t.Context(), "root"); err == nil {
		t.Error("the owner exists")
	}
	w.audit.broken = false
	codes, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), form)
	if err != nil {
		t.Fatal(err)
	}
	got := w.take()
	if len(got) != 2 || got[0].Details["what"] != "make owner" || got[0].Details["login"] != "root" ||
		got[1].Details["what"] != "create user" || got[1].Details["login"] != "bob" {
		t.Errorf("set-up: %+v", got)
	}
	if err := identitytest.AcceptInvite(t.Context(), w.target, codes[0], password); err != nil {
		t.Fatal(err)
	}
	if got := w.take(); len(got) != 1 || got[0].Details["what"] != "set password" || got[0].User == "" {
		t.Errorf("invitation: %+v", got)
	}
	if _, err := identitytest.SetUp(t.Context(), w.target, code.Reveal(), form); err == nil {
		t.Error("a code worked twice")
	}
	if got := w.take(); len(got) != 1 || got[0].Kind != chain.SignInFailed || got[0].Reasons[0] != "code_wrong" {
		t.Errorf("a used code: %+v", got)
	}
}
