package scenario

import (
	"testing"

	"github.com/postern-zt/postern/netstack/carrier"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// TestUnknownFactDenies: a fact that was never reported, or reported with a word that
// nobody knows, does not count as pass (invariant 6).
func TestUnknownFactDenies(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki", "firewall")
	silent := w.stranger("silent")
	silent.enrol("ann")
	if r := silent.denied("wiki"); r.Verdict != controlv1.Verdict_VERDICT_DENY {
		t.Errorf("a device without facts: %v", r)
	}
	for _, word := range []string{"unknown", "maybe", "PASS", ""} {
		silent.report(map[string]string{"firewall": word})
		if r := silent.denied("wiki"); r.Verdict != controlv1.Verdict_VERDICT_DENY {
			t.Errorf("a firewall that is %q: %v", word, r)
		}
	}
	if wiki.hits() != 0 {
		t.Errorf("the app saw %d connections", wiki.hits())
	}
	silent.report(map[string]string{"firewall": "pass"})
	tn, ref, _ := silent.open("wiki", carrier.TLS)
	tn.tcp(ref, wiki.port()).Close()
}
