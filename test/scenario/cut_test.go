package scenario

import (
	"errors"
	"testing"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/wire"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// TestCutLinkStaysRefused: after the last grant of a link was revoked the relay refuses the
// link's old tickets, also after relay and broker have restarted; the ticket of a new grant
// opens the link, and the old one stays refused beside it (decisions rules 9 and 14).
func TestCutLinkStaysRefused(t *testing.T) {
	t.Run("relay in the broker", func(t *testing.T) { cutLink(t, false) })
	t.Run("relay of its own", func(t *testing.T) { cutLink(t, true) })
}

func cutLink(t *testing.T, own bool) {
	wiki := echo(t)
	inside := !own
	w := newWorldWith(t, func(c *broker.Config) { c.Relay = &inside }, "ann")
	var r *relayNode
	if own {
		r = w.relayNode("relay-1")
	}
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	l := goLive(d, "wiki", carrier.TLS, wiki.port())
	first := l.resp
	w.revoke(first)
	l.died()
	eventually(t, "the old ticket is refused", func() bool { return d.cut(first) })

	second := d.granted("wiki")
	if d.cut(second) {
		t.Error("the ticket of a new grant is refused")
	}
	if !d.cut(first) {
		t.Error("the old ticket opens the link beside the new one")
	}

	w.revoke(second)
	eventually(t, "the second ticket is refused", func() bool { return d.cut(second) })
	w.stopBroker()
	if own {
		r.stop()
		r.start()
	}
	w.startBroker()
	if own {
		eventually(t, "the relay has found the broker again", func() bool { return r.node.State().Connected })
	}
	s.await()
	eventually(t, "the tickets are refused after the restart", func() bool { return d.cut(first) && d.cut(second) })
	d.connect()
	third := d.granted("wiki")
	if d.cut(third) || !d.cut(second) {
		t.Error("after the restart the ticket of a new grant is refused, or an old one is not")
	}
}

// cut reports whether the relay says that the tickets of an answer are revoked.
func (d *device) cut(resp *controlv1.AuthorizeResponse) bool {
	d.w.t.Helper()
	path := resp.Connectors[0]
	config, err := peer.ClientConfig(peer.Config{Credentials: d.creds, Expect: peer.Anyone})
	if err != nil {
		d.w.t.Fatal(err)
	}
	c, err := d.dial(within(d.w.t), carrier.TLS, path.Relays[0], config)
	if err == nil {
		_ = c.Close() // it has said what we asked
	}
	return errors.Is(err, &attach.RefusedError{Code: wire.CodeRevoked})
}
