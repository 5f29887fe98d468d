package scenario

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
)

// perKind flows of each network are live on each carrier: 100 in all.
const perKind = 25

// TestHundredFlowsDie: TCP and UDP flows over both carriers all end with one revocation,
// at the devices and at the app, and nothing of them comes back (invariant 7).
func TestHundredFlowsDie(t *testing.T) {
	tcp, udp := echo(t), echoUDP(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", tcp.target())
	w.publish("dns", "berlin", udp.udpTarget())
	w.allow("ann", "wiki")
	w.allow("ann", "dns")
	c := &crowd{dead: make(chan error, 4*perKind)}
	for _, kind := range bothCarriers {
		d := w.device("ann", "ann-"+string(kind))
		tn, ref, _ := d.open("wiki", kind)
		c.tcp(tn, ref, tcp)
		c.udp(t, tn, tn.accepted(d.granted("dns").Grant), udp)
	}
	began := time.Now()
	w.disable("ann")
	for range 4 * perKind {
		select {
		case err := <-c.dead:
			if frame.CodeOf(err) != frame.Revoked {
				t.Errorf("a flow ended with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("not all flows ended at the devices")
		}
	}
	t.Logf("%d flows were dead at the devices after %s", 4*perKind, time.Since(began).Round(100*time.Microsecond))
	at := tcp.awaitEnds(t, 2*perKind)
	t.Logf("%d were dead at the app after %s", 2*perKind, at.Sub(began).Round(100*time.Microsecond))
	c.work.Wait()
	if tcp.hits() != 2*perKind {
		t.Errorf("the app saw %d connections, want %d", tcp.hits(), 2*perKind)
	}
}

// crowd are many flows whose ends are told.
type crowd struct {
	work sync.WaitGroup
	dead chan error
}

func (c *crowd) tcp(tn *tunnel, ref link.GrantRef, a *app) {
	for range perKind {
		f := tn.tcp(ref, a.port())
		c.work.Go(func() {
			_, err := io.Copy(io.Discard, f)
			c.dead <- err
			f.Close()
		})
	}
}

func (c *crowd) udp(t *testing.T, tn *tunnel, ref link.GrantRef, a *app) {
	for range perKind {
		p := tn.udp(ref, a.port())
		exchange(t, p, []byte("are you there"))
		_ = p.SetReadDeadline(time.Time{})
		c.work.Go(func() {
			b := make([]byte, 1500)
			var err error
			for err == nil {
				_, err = p.Read(b)
			}
			c.dead <- err
			p.Close()
		})
	}
}
