package scenario

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/ids"
)

// downloadSize is large enough that the middle is far from both ends.
const downloadSize = 50 << 20

// TestRelayKilledInADownload: with two relays up, the death of the one in use loses not a
// byte; the app sees one connection.
func TestRelayKilledInADownload(t *testing.T) {
	for _, kinds := range [][]carrier.Kind{{carrier.TLS}, {carrier.QUIC}, bothCarriers} {
		name := string(kinds[0])
		if len(kinds) > 1 {
			name = "both"
		}
		t.Run(name, func(t *testing.T) { relayKilled(t, kinds) })
	}
}

func relayKilled(t *testing.T, kinds []carrier.Kind) {
	files := source(t, downloadSize)
	off := false
	w := newWorldWith(t, func(c *broker.Config) { c.Relay = &off }, "ann")
	relays := map[string]*relayNode{}
	for _, name := range []string{"relay-1", "relay-2"} {
		r := w.relayNode(name)
		relays[string(r.id())] = r
	}
	w.connector("berlin-1", w.site("berlin"))
	w.publish("files", "berlin", files.target())
	w.allow("ann", "files")
	d := w.device("ann", "ann-laptop")
	resp := d.granted("files")
	if len(resp.Connectors[0].Relays) != 2 {
		t.Fatalf("relays of the grant: %v", resp.Connectors[0].Relays)
	}
	tn := d.link(resp.Connectors[0], kinds...)
	f := tn.tcp(tn.accepted(resp.Grant), files.port())
	defer f.Close()
	stall := download(t, f, func() { relays[tn.activeRelay()].stop() })
	t.Logf("%v: the longest stall was %s", kinds, stall.Round(time.Millisecond))
	if files.hits() != 1 {
		t.Errorf("the app saw %d connections, want 1", files.hits())
	}
}

// activeRelay is the relay of the carrier in use, which has one: bytes have just come.
func (tn *tunnel) activeRelay() string {
	tn.d.w.t.Helper()
	for _, c := range tn.client.Status().Carriers {
		if _, relay, ok := strings.Cut(c.Name, " "); ok && c.Active {
			return relay
		}
	}
	tn.d.w.t.Fatal("no carrier is active")
	return ""
}

// download reads and compares everything, calls middle once in the middle, and returns
// the longest time without a byte.
func download(t *testing.T, f *flow.Flow, middle func()) (stall time.Duration) {
	t.Helper()
	want := &pattern{}
	got, compare := make([]byte, 256<<10), make([]byte, 256<<10)
	last := time.Now()
	for read := 0; read < downloadSize; {
		_ = f.SetReadDeadline(time.Now().Add(patience))
		n, err := f.Read(got)
		_, _ = want.Read(compare[:n])
		if !bytes.Equal(got[:n], compare[:n]) {
			t.Fatalf("other bytes came after %d", read)
		}
		if err != nil {
			t.Fatalf("%d of %d bytes came: %v", read+n, downloadSize, err)
		}
		if read < downloadSize/2 && read+n >= downloadSize/2 {
			middle()
		}
		read += n
		stall, last = max(stall, time.Since(last)), time.Now()
	}
	if n, err := f.Read(got); n != 0 || err != io.EOF {
		t.Errorf("after the last byte: %d, %v", n, err)
	}
	return stall
}

// id is the relay's own, as grants name it.
func (r *relayNode) id() ids.RelayID {
	r.w.t.Helper()
	m, err := r.store.Load()
	if err != nil {
		r.w.t.Fatal(err)
	}
	return m.Relay
}
