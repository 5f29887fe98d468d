package scenario

import (
	"io"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/link"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// live is a flow that moves bytes while something happens to its permission.
type live struct {
	d    *device
	tn   *tunnel
	ref  link.GrantRef
	flow *flow.Flow
	resp *controlv1.AuthorizeResponse
	kind carrier.Kind
	dead chan time.Time // when the device's end saw the end
	err  error          // why; valid after dead
}

// goLive opens a flow to an echo app and keeps a reader on it.
func goLive(d *device, name string, kind carrier.Kind, port uint16) *live {
	d.w.t.Helper()
	l := &live{d: d, kind: kind, dead: make(chan time.Time, 1)}
	l.tn, l.ref, l.resp = d.open(name, kind)
	l.flow = l.tn.tcp(l.ref, port)
	if _, err := l.flow.Write([]byte("ping")); err != nil {
		d.w.t.Fatal(err)
	}
	if _, err := io.ReadFull(l.flow, make([]byte, 4)); err != nil {
		d.w.t.Fatal(err)
	}
	go func() { // ends with the flow, which the end of the link resets at the latest
		_, l.err = io.Copy(io.Discard, l.flow)
		l.dead <- time.Now()
	}()
	return l
}

// died waits until the device saw the end of the flow.
func (l *live) died() time.Time {
	l.d.w.t.Helper()
	select {
	case at := <-l.dead:
		return at
	case <-time.After(patience):
		l.d.w.t.Fatal("the flow never ended at the device")
		return time.Time{}
	}
}

// refused checks that the old grant and new questions are refused.
func (l *live) refused(name string, replay frame.Code) {
	l.d.w.t.Helper()
	if resp, err := l.d.authorize(name); err == nil && len(resp.Grant) != 0 {
		l.d.w.t.Errorf("%s got a new grant", l.d.name)
	}
	if _, err := l.tn.present(l.resp.Grant); frame.CodeOf(err) != replay {
		l.d.w.t.Errorf("the old grant again: %v, want %v", err, replay)
	}
	if got := l.tn.tcpCode(l.ref, 1); got == frame.OK {
		l.d.w.t.Error("a flow opened under the old grant")
	}
}

// TestRevocationEndsFlows: whatever takes a permission away ends the live flow at the app
// and at the device, over both carriers, and what is refused stays refused (invariant 7).
func TestRevocationEndsFlows(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann", "bob", "cat", "dan")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	for user, act := range map[string]func(d *device, rule string){
		"ann": func(*device, string) { w.disable("ann") },
		"bob": func(_ *device, rule string) { w.removeRule(rule) },
		"cat": func(d *device, _ string) { w.block(d) },
		"dan": func(d *device, _ string) { d.report(map[string]string{"firewall": "fail"}) },
	} {
		w.run(user, func(t *testing.T) { revokeStory(t, w, wiki, user, act) })
	}
}

func revokeStory(t *testing.T, w *world, wiki *app, user string, act func(d *device, rule string)) {
	rule := w.allow(user, "wiki", "firewall")
	before := wiki.ended()
	d1, d2 := w.device(user, user+"-laptop"), w.device(user, user+"-phone")
	flows := []*live{goLive(d1, "wiki", carrier.TLS, wiki.port()), goLive(d2, "wiki", carrier.QUIC, wiki.port())}
	hits := wiki.hits()
	began := time.Now()
	act(d1, rule)
	if user == "cat" || user == "dan" { // these two are about one device
		act(d2, rule)
	}
	for _, l := range flows {
		at := l.died()
		t.Logf("%s over %s: dead at the device after %s", user, l.kind, at.Sub(began).Round(100*time.Microsecond))
		if frame.CodeOf(l.err) != frame.Revoked {
			t.Errorf("the device heard %v", l.err)
		}
	}
	t.Logf("%s: dead at the app after %s", user, wiki.awaitEnds(t, before+2).Sub(began).Round(100*time.Microsecond))
	for _, l := range flows {
		l.refused("wiki", frame.Revoked)
	}
	if wiki.hits() != hits {
		t.Errorf("%d connections came after the revocation", wiki.hits()-hits)
	}
}

func (a *app) ended() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.ends)
}

func (w *world) disable(user string) {
	w.t.Helper()
	resp, err := w.admin.users.DisableUser(w.ctx(), connect.NewRequest(&adminv1.UserRef{User: user, Reason: "left"}))
	if fx := must(w.t, resp, err); fx.Grants == 0 {
		w.t.Errorf("effect: %v", fx)
	}
}

func (w *world) block(d *device) {
	w.t.Helper()
	resp, err := w.admin.devices.BlockDevice(w.ctx(), connect.NewRequest(&adminv1.DeviceRef{Device: d.id, Reason: "lost"}))
	must(w.t, resp, err)
}

// TestEndIsTold: the device hears from the broker which grant ended and why.
func TestEndIsTold(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki", "firewall")
	d := w.device("ann", "ann-laptop")
	l := goLive(d, "wiki", carrier.TLS, wiki.port())
	d.report(map[string]string{"firewall": "fail"})
	l.died()
	d.news.await(t, "the end of the grant", func(n *news) bool { _, ok := n.ended[l.resp.GrantId]; return ok })
	d.news.mu.Lock()
	r := d.news.ended[l.resp.GrantId]
	d.news.mu.Unlock()
	if r.GetVerdict() != controlv1.Verdict_VERDICT_DENY || r.GetRemedy() == "" || r.GetAppName() != "wiki" {
		t.Errorf("receipt: %v", r)
	}
	d.report(map[string]string{"firewall": "pass"})
	eventually(t, "the repaired device is let in again", func() bool {
		resp, err := d.authorize("wiki")
		return err == nil && len(resp.Grant) != 0
	})
}

// shortLease is a lease that a test can wait for.
const shortLease = 2 * time.Second

// TestPartitionedConnector: a connector that hears nothing of the broker ends flows at the
// end of its lease, by the app's outage mode, opens nothing new, and after a restart serves
// nothing before it has heard the broker (invariant 7).
func TestPartitionedConnector(t *testing.T) {
	cut, held := echo(t), echo(t)
	w := newWorldWith(t, func(c *broker.Config) { c.Lease = shortLease }, "ann")
	s := w.connector("berlin-1", w.site("berlin"))
	place := func(a *app) []*adminv1.Placement {
		return []*adminv1.Placement{{Site: "berlin", Targets: []string{a.target()}}}
	}
	w.publishAs(&adminv1.PublishAppRequest{Name: "cut", OutageMode: "cut", Placements: place(cut)})
	w.publishAs(&adminv1.PublishAppRequest{Name: "held", OutageMode: "continue 1h", Placements: place(held)})
	w.allow("ann", "cut")
	w.allow("ann", "held")
	d := w.device("ann", "ann-laptop")
	one, two := goLive(d, "cut", carrier.TLS, cut.port()), goLive(d, "held", carrier.TLS, held.port())
	began := time.Now()
	s.net.set(true)
	at := one.died()
	t.Logf("lease %s: the cut app's flow was dead after %s", shortLease, at.Sub(began).Round(time.Millisecond))
	if frame.CodeOf(one.err) != frame.LeaseEnded || at.Sub(began) > shortLease+patience/2 {
		t.Errorf("the flow ended with %v after %s", one.err, at.Sub(began))
	}
	two.alive()
	if got := one.tn.tcpCode(two.ref, held.port()); got != frame.NotLive {
		t.Errorf("a new flow of the app that continues: %v", got)
	}
	if _, err := one.tn.present(one.resp.Grant); frame.CodeOf(err) != frame.NotLive {
		t.Errorf("the old grant while partitioned: %v", err)
	}
	restartPartitioned(t, w, s, d, two, held)
}

// alive sends something over the flow and waits until the app has it.
func (l *live) alive() {
	l.d.w.t.Helper()
	_ = l.flow.SetWriteDeadline(time.Now().Add(patience))
	if _, err := l.flow.Write([]byte("still here")); err != nil {
		l.d.w.t.Errorf("the flow that continues: %v", err)
	}
}

// restartPartitioned revokes while the connector cannot hear it, restarts the connector,
// and lets it hear again.
func restartPartitioned(t *testing.T, w *world, s *site, d *device, l *live, held *app) {
	w.revoke(l.resp) // nobody can tell the connector
	s.stop()
	held.awaitEnds(t, 1)
	s.start()
	tn := d.link(l.resp.Connectors[0], carrier.TLS)
	if s.conn.Live() {
		t.Error("a connector that has heard nothing is live")
	}
	hits := held.hits()
	s.net.set(false)
	s.await()
	if _, err := tn.present(l.resp.Grant); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("a grant revoked during the partition: %v", err)
	}
	again := d.granted("held")
	tn.tcp(tn.accepted(again.Grant), held.port()).Close()
	if held.hits() != hits+1 {
		t.Errorf("the app saw %d connections, want one more than %d", held.hits(), hits)
	}
}
