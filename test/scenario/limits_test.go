package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// cedar puts a rule as Cedar text; %s is the app.
func (w *world) cedar(text, app string) string {
	w.t.Helper()
	resp, err := w.admin.rules.PutRule(within(w.t), connect.NewRequest(&adminv1.PutRuleRequest{
		Name: "by hand", Cedar: fmt.Sprintf(text, w.appID(app)),
	}))
	return must(w.t, resp, err).Rule.Id
}

// TestOpenRateIsHeld: opens above the rate of a minute are refused by the connector with
// their own reason, reach no app, and are one counted record.
func TestOpenRateIsHeld(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann", "bob")
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.cedar(`@open_rate("3") permit(principal, action, resource == App::"%s");`, "wiki")
	ann, bob := w.device("ann", "ann-laptop"), w.device("bob", "bob-laptop")
	tn, ref, _ := ann.open("wiki", carrier.TLS)
	for i, want := range []frame.Code{frame.OK, frame.OK, frame.OK, frame.TooManyOpens, frame.TooManyOpens} {
		if got := tn.tcpCode(ref, wiki.port()); got != want {
			t.Errorf("open %d: %v, want %v", i+1, got, want)
		}
	}
	reachable(w, bob, carrier.TLS, wiki)
	if got := wiki.hits(); got != 4 {
		t.Errorf("the app saw %d connections, want 3 of ann and 1 of bob", got)
	}
	s.stop() // what was refused is written at the end at the latest, and shipped at the next start
	s.start()
	eventually(t, "the refusals are one record", func() bool {
		got := w.records(chain.FlowRefused)
		return len(got) == 1 && got[0].Count == 2 && strings.Join(got[0].Reasons, " ") == "too_many_opens"
	})
}

// TestIdleEndsTheGrant: a grant on which nothing moves ends with the reason, and using the
// app gives a new one; one that moves bytes stays.
func TestIdleEndsTheGrant(t *testing.T) {
	wiki := echo(t)
	w := newWorldWith(t, func(c *broker.Config) { c.Lease = shortLease }, "ann", "bob")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.cedar(`@idle("3s") permit(principal, action, resource == App::"%s");`, "wiki")
	d, busy := w.device("ann", "ann-laptop"), w.device("bob", "bob-laptop")
	quiet, moving := goLive(d, "wiki", carrier.TLS, wiki.port()), goLive(busy, "wiki", carrier.QUIC, wiki.port())
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-quiet.dead:
			ended = true
		case at := <-moving.dead:
			t.Fatalf("the busy flow ended at %s: %v", at, moving.err)
		case <-tick.C:
			moving.alive()
		case <-time.After(patience):
			t.Fatal("the idle flow never ended")
		}
	}
	if frame.CodeOf(quiet.err) != frame.Revoked {
		t.Errorf("the device heard %v", quiet.err)
	}
	d.news.await(t, "the end of the grant", func(n *news) bool { _, ok := n.ended[quiet.resp.GrantId]; return ok })
	resp, err := d.api.Why(w.ctx(), connect.NewRequest(&controlv1.WhyRequest{Query: quiet.resp.Receipt.Id}))
	if why := must(t, resp, err); !strings.Contains(why.Text, "Nothing was sent or received for 3s") || strings.Join(why.Receipt.ReasonCodes, " ") != "idle" {
		t.Errorf("why: %v", why)
	}
	if again := d.granted("wiki"); again.GrantId == quiet.resp.GrantId {
		t.Error("the grant that ended was given again")
	}
	moving.alive()
}
