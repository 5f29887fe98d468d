package scenario

import (
	"net"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/frame"
)

// from has the device ask from an address of this machine: it has moved there.
func (d *device) from(addr string) {
	d.w.t.Helper()
	d.http.CloseIdleConnections()
	at := d.w.where()
	d.http = control.NewClient(control.ClientConfig{
		Broker: at, Certificate: d.member.Certificate, Dialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}},
	})
	d.w.t.Cleanup(d.http.CloseIdleConnections)
	d.api = controlv1connect.NewDeviceServiceClient(d.http, at.BaseURL())
}

// TestMoveIsJudged: a laptop that leaves the network that a rule asks for loses what it was
// given there, at its next question or with its control stream alone, and gets it again on
// the way back. A rule that asks for no network lets it roam.
func TestMoveIsJudged(t *testing.T) {
	wiki, blog := echo(t), echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.publish("blog", "berlin", blog.target())
	w.cedar(`permit(principal, action, resource == App::"%s") when { context has source && context.source.isInRange(ip("127.0.0.1/32")) };`, "wiki")
	w.allow("ann", "blog")
	d := w.device("ann", "ann-laptop")
	for name, move := range map[string]func(){
		"asks": func() {
			d.from("127.0.0.2")
			r := d.denied("wiki")
			if strings.Join(r.ReasonCodes, " ") != "rule_condition" {
				t.Errorf("receipt: %v", r)
			}
		},
		"listens": func() {
			d.from("127.0.0.3")
			stream, err := d.api.Watch(w.ctx(), connect.NewRequest(&controlv1.WatchRequest{Version: version}))
			if err != nil || !stream.Receive() {
				t.Fatalf("watch: %v", err)
			}
			stream.Close()
		},
	} {
		t.Log("a laptop that moves and " + name)
		d.from("127.0.0.1")
		here, everywhere := goLive(d, "wiki", carrier.TLS, wiki.port()), goLive(d, "blog", carrier.TLS, blog.port())
		move()
		here.died()
		if frame.CodeOf(here.err) != frame.Revoked {
			t.Errorf("the device heard %v", here.err)
		}
		here.refused("wiki", frame.Revoked)
		everywhere.alive()
		if again := d.granted("blog"); again.GrantId != everywhere.resp.GrantId {
			t.Error("an app that is open everywhere got a second grant")
		}
		if why := d.why("wiki"); why.Receipt.GetVerdict() != controlv1.Verdict_VERDICT_DENY {
			t.Errorf("why: %v", why)
		}
		everywhere.flow.Close()
	}
	d.from("127.0.0.1")
	goLive(d, "wiki", carrier.QUIC, wiki.port()).alive()
}
