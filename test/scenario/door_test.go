package scenario

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// TestSignInToBytes is the product's main story: a person signs in, reaches one private app
// over each carrier, and is refused another with the reason.
func TestSignInToBytes(t *testing.T) {
	wiki, payroll, dns := web(t, "hello from the wiki"), web(t, "salaries"), echoUDP(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.publish("payroll", "berlin", payroll.target())
	w.publish("dns", "berlin", dns.udpTarget())
	w.allow("ann", "wiki")
	w.allow("ann", "dns")
	d := w.device("ann", "ann-laptop")
	for _, kind := range bothCarriers {
		w.run(string(kind), func(t *testing.T) { reachBoth(t, d, kind, wiki, dns) })
	}
	if wiki.hits() != len(bothCarriers) {
		t.Errorf("the wiki saw %d connections, want %d", wiki.hits(), len(bothCarriers))
	}
	r := d.denied("payroll")
	if r.Verdict != controlv1.Verdict_VERDICT_DENY || r.Reason == "" || len(r.ReasonCodes) == 0 || r.Id == "" {
		t.Errorf("the receipt of a refusal: %v", r)
	}
	if payroll.hits() != 0 {
		t.Errorf("the refused app saw %d connections", payroll.hits())
	}
}

func reachBoth(t *testing.T, d *device, kind carrier.Kind, wiki, dns *app) {
	resp := d.granted("wiki")
	if resp.Receipt.GetId() == "" || resp.Receipt.GetAppName() != "wiki" {
		t.Errorf("receipt: %v", resp.Receipt)
	}
	tn := d.link(resp.Connectors[0], kind)
	ref := tn.accepted(resp.Grant)
	if got := get(t, tn.tcp(ref, wiki.port())); got != "hello from the wiki" {
		t.Errorf("the wiki says %q", got)
	}
	p := tn.udp(tn.accepted(d.granted("dns").Grant), dns.port())
	defer p.Close()
	exchange(t, p, []byte("question over "+string(kind)))
	if st := tn.client.Status(); len(st.Carriers) != 1 || st.Carriers[0].Kind != kind {
		t.Errorf("carriers: %+v, want one of kind %s", st.Carriers, kind)
	}
}

// get asks for / over a flow and returns the body.
func get(t testing.TB, f *flow.Flow) string {
	t.Helper()
	defer f.Close()
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodGet, "http://wiki."+suffix+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	if err := req.Write(f); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(f), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// exchange sends a message until it comes back: datagrams may be lost.
func exchange(t testing.TB, p io.ReadWriter, msg []byte) {
	t.Helper()
	c := p.(interface {
		io.ReadWriter
		SetReadDeadline(at time.Time) error
	})
	late := time.Now().Add(patience)
	b := make([]byte, 64<<10)
	for time.Now().Before(late) {
		if _, err := c.Write(msg); err != nil {
			t.Fatalf("send: %v", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(b); err == nil && bytes.Equal(b[:n], msg) {
			return
		}
	}
	t.Fatal("no answer came back")
}

// TestTruthAboutTheApp: what is wrong with the app is what the device hears.
func TestTruthAboutTheApp(t *testing.T) {
	closed, slow := refusing(t), silent(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("closed", "berlin", closed.target())
	w.publish("slow", "berlin", slow.target())
	w.publish("gone", "berlin", "no-such-host.invalid:80")
	for _, name := range []string{"closed", "slow", "gone"} {
		w.allow("ann", name)
	}
	d := w.device("ann", "ann-laptop")
	for name, want := range map[string]frame.Code{"closed": frame.Refused, "gone": frame.NameNotFound} {
		tn, ref, _ := d.open(name, carrier.TLS)
		port := closed.port()
		if name == "gone" {
			port = 80
		}
		if got := tn.tcpCode(ref, port); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	tn, ref, _ := d.open("slow", carrier.TLS)
	f := tn.tcp(ref, slow.port())
	defer f.Close()
	if _, err := f.Write([]byte("anybody there?")); err != nil {
		t.Errorf("a slow app is not a dead one: %v", err)
	}
}

// TestVisibility: an app is listed for whom its visibility says, and `why` gives nothing
// away about the others.
func TestVisibility(t *testing.T) {
	wiki := web(t, "wiki")
	w := newWorld(t, "ann", "bob")
	w.connector("berlin-1", w.site("berlin"))
	for _, v := range []string{"everyone", "allowed", "hidden"} {
		w.publishAs(&adminv1.PublishAppRequest{
			Name: "app-" + v, Visibility: v, Placements: []*adminv1.Placement{{Site: "berlin", Targets: []string{wiki.target()}}},
		})
		w.allow("ann", "app-"+v)
	}
	ann, bob := w.device("ann", "ann-laptop"), w.device("bob", "bob-laptop")
	ann.news.await(t, "all apps as allowed", func(n *news) bool {
		return allOf(n, "app-everyone", "app-allowed")
	})
	bob.news.await(t, "the one app for everyone", func(n *news) bool {
		listed, allowed := n.sees("app-everyone")
		return listed && !allowed && len(n.catalog.Apps) == 1
	})
	unknown := bob.why("app-that-never-was")
	for _, name := range []string{"app-allowed", "app-hidden"} {
		if got := bob.why(name); got.Known || got.Text != unknown.Text || got.Receipt != nil {
			t.Errorf("why %s tells %v, an unknown name tells %v", name, got, unknown)
		}
	}
	if got := bob.why("app-everyone"); !got.Known || got.Text == "" {
		t.Errorf("why app-everyone: %v", got)
	}
	if got := ann.why("app-hidden"); !got.Known || !strings.Contains(got.Text, "may use") {
		t.Errorf("why app-hidden for whom it is allowed: %v", got)
	}
}

func allOf(n *news, names ...string) bool {
	for _, name := range names {
		if listed, allowed := n.sees(name); !listed || !allowed {
			return false
		}
	}
	return true
}

// TestReceiptIsOne: the number that the employee sees leads the administrator to the same
// decision, and the employee to its explanation.
func TestReceiptIsOne(t *testing.T) {
	wiki := web(t, "wiki")
	w := newWorld(t, "ann", "bob")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki", "firewall")
	ann, bob := w.device("ann", "ann-laptop"), w.device("bob", "bob-laptop")
	ann.report(map[string]string{"firewall": "fail"})
	r := ann.denied("wiki")
	if r.Remedy == "" {
		t.Errorf("a refusal for a firewall without a remedy: %v", r)
	}
	eventually(t, "the refusal is recorded, behind its answer", func() bool { return w.count("decisions") > 0 })
	why := ann.why(r.Id)
	if !why.Known || why.Receipt.GetId() != r.Id || !strings.Contains(strings.ToLower(why.Text), "firewall") {
		t.Errorf("why %s: %v", r.Id, why)
	}
	if _, err := bob.api.Why(w.ctx(), connectRequest(r.Id)); err == nil {
		t.Error("a receipt was explained to another person's device")
	}
	if rec := w.decision(r.Id); rec.Receipt != r.Id || rec.Verdict != "deny" || rec.App == "" {
		t.Errorf("the administrator sees %v", rec)
	}
}
