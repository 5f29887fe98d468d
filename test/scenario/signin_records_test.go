package scenario

import (
	"strings"
	"testing"

	"github.com/postern-zt/postern/broker/identity/identitytest"
	"github.com/postern-zt/postern/proto/chain"
)

// TestSignInsAreRecorded: the set-up, each session, and refused sign-ins, the equal ones of a
// minute as one counted record. Nothing that was typed is in a record.
func TestSignInsAreRecorded(t *testing.T) {
	w := newWorld(t, "ann")
	d := w.device("ann", "ann-laptop")
	const typed = "a password in the wrong field"
	for _, who := range []identitytest.Person{
		{Login: "ann", Password: "wrong " + password}, {Login: "ann", Password: "wrong " + password}, {Login: typed, Password: "x"},
	} {
		if _, err := identitytest.SignIn(w.ctx(), w.signInAt(d.member.KeyID()), who); err == nil {
			t.Fatal("a wrong password signed in")
		}
	}
	w.stopBroker() // counts are written when their minute is over, or at the end
	w.startBroker()
	var known, unknown uint64
	for _, r := range w.records(chain.SignInFailed) {
		if n := max(r.Count, 1); r.User != "" {
			known += n
		} else {
			unknown += n
		}
		if strings.Join(r.Reasons, " ") != "identity_unverified" || r.Sealed == "" {
			t.Errorf("record: %+v", r)
		}
	}
	if known != 2 || unknown != 1 {
		t.Errorf("%d refusals of ann and %d of nobody, want 2 and 1", known, unknown)
	}
	var made, sessions int
	for _, r := range w.records(chain.Changed) {
		if r.Details["what"] == "make owner" && r.Details["login"] == "root" {
			made++
		}
	}
	for _, r := range w.records(chain.SignedIn) {
		if r.Details["amr"] == "pwd" && r.Sealed != "" && r.Device != "" {
			sessions++
		}
	}
	if made != 1 || sessions == 0 {
		t.Errorf("%d owners made and %d sessions recorded", made, sessions)
	}
	if text := string(w.exportAudit()); strings.Contains(text, typed) || strings.Contains(text, password) {
		t.Error("the audit holds what was typed")
	}
}
