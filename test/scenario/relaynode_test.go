package scenario

import (
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/relaynode"
	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// relayNode is a relay of its own process, running or not.
type relayNode struct {
	w     *world
	addr  string
	store *relaynode.Store
	node  *relaynode.Node
	proc  *process
}

// relayNode joins a relay with a token and starts it.
func (w *world) relayNode(name string) *relayNode {
	w.t.Helper()
	resp, err := w.admin.tokens.CreateToken(w.ctx(), connect.NewRequest(&adminv1.CreateTokenRequest{Role: "relay"}))
	token := must(w.t, resp, err).Secret
	store, err := relaynode.Open(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	r := &relayNode{w: w, addr: freePort(w.t), store: store}
	if _, err := store.Join(w.ctx(), relaynode.Join{
		URL: w.broker.URL(), Token: token, Name: name, Addresses: []string{r.addr}, Version: version,
	}); err != nil {
		w.t.Fatalf("join %s: %v", name, err)
	}
	r.start()
	eventually(w.t, name+" is connected", func() bool { return r.node.State().Connected })
	return r
}

func (r *relayNode) start() {
	r.w.t.Helper()
	n, err := relaynode.New(r.w.ctx(), relaynode.Config{Store: r.store, Listen: r.addr, Version: version, Log: r.w.log.With("role", "relay")})
	if err != nil {
		r.w.t.Fatalf("start the relay: %v", err)
	}
	r.node, r.proc = n, start(r.w.t, "relay", n.Run)
}

func (r *relayNode) stop() {
	r.w.t.Helper()
	if err := r.proc.stop(); err != nil {
		r.w.t.Fatalf("the relay ended with %v", err)
	}
}

// TestRelayOfItsOwn: flows through a relay of its own process do not notice that the
// broker restarts, and survive a restart of the relay.
func TestRelayOfItsOwn(t *testing.T) {
	for _, kind := range bothCarriers {
		t.Run(string(kind), func(t *testing.T) { relayOfItsOwn(t, kind) })
	}
}

func relayOfItsOwn(t *testing.T, kind carrier.Kind) {
	wiki := echo(t)
	off := false
	w := newWorldWith(t, func(c *broker.Config) { c.Relay = &off }, "ann")
	r := w.relayNode("relay-1")
	s := w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	l := goLive(d, "wiki", kind, wiki.port())
	if relays := l.resp.Connectors[0].Relays; len(relays) != 1 || len(relays[0].Relay.KeyId) == 0 {
		t.Fatalf("relays of the grant: %v", relays)
	}

	w.stopBroker()
	moves(t, "the broker is away", l, wiki)
	w.startBroker()
	moves(t, "the broker starts", l, wiki)
	eventually(t, "the relay has found the broker again", func() bool { return r.node.State().Connected })
	s.await()
	moves(t, "the broker is back", l, wiki)
	if st := l.tn.client.Status(); len(st.Carriers) != 1 {
		t.Errorf("carriers after the restart of the broker: %+v", st.Carriers)
	}

	r.stop()
	r.start()
	moves(t, "the relay restarted", l, wiki) // the same flow, on a new carrier
	if wiki.hits() != 1 {
		t.Errorf("the app saw %d connections, want the one from the beginning", wiki.hits())
	}
	w.revoke(l.resp)
	l.died()
	l.flow.Close()
}

// moves writes to the flow and waits until the app has read it all, and says how long that
// took.
func moves(t *testing.T, when string, l *live, a *app) {
	t.Helper()
	before, _ := a.bytes()
	began := time.Now()
	l.alive()
	eventually(t, "bytes arrive when "+when, func() bool { in, _ := a.bytes(); return in > before })
	t.Logf("%s: bytes arrived after %s", when, time.Since(began).Round(time.Millisecond))
}
