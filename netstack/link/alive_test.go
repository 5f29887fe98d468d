package link_test

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/netstack/link"
)

// standby opens a flow on a, with b warm beside it.
func standby(t *testing.T, w *world, port uint16, a, b *road) (*link.Client, net.Conn) {
	t.Helper()
	c := granted(t, w, a, b)
	f := mustOpen(t, c, 1, port)
	synctest.Wait()
	for len(c.Status().Carriers) < 2 {
		if _, err := c.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return c, f
}

// stream is an app that after one echo only sends, a little every few milliseconds.
func stream(c net.Conn) {
	defer c.Close()
	if _, err := io.CopyN(c, c, 4); err != nil {
		return
	}
	tick := time.NewTicker(7 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.Write([]byte("news")); err != nil {
			return
		}
		<-tick.C
	}
}

// TestSilentDownloadMoves: a client that only receives has nothing to send into the
// silence. Whenever its carrier falls silent, the standby goes on within a second.
func TestSilentDownloadMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for after := time.Second; after < 1400*time.Millisecond; after += 57 * time.Millisecond {
			silentDownload(t, after)
		}
	})
}

func silentDownload(t *testing.T, after time.Duration) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, stream)
	a, b := &road{name: "a", latency: 5 * time.Millisecond}, &road{name: "b", latency: 5 * time.Millisecond}
	_, f := standby(t, w, 80, a, b)
	time.AfterFunc(after, a.cut)
	last, longest := time.Now(), time.Duration(0)
	for began := last; last.Sub(began) < after+2*time.Second; last = time.Now() {
		if _, err := f.Read(make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(last))
	}
	if longest > time.Second || longest < 100*time.Millisecond {
		t.Errorf("cut after %s: nothing came for %s, want a stall of at most a second", after, longest)
	}
	f.Close()
}

// TestIdleLinesAreQuiet: lines on which nothing moves are asked now and then, not more.
func TestIdleLinesAreQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		w.handler.app(80, echo)
		a, b := &road{name: "a", latency: 5 * time.Millisecond}, &road{name: "b", latency: 5 * time.Millisecond}
		_, f := standby(t, w, 80, a, b)
		mustEcho(t, f)
		<-time.After(time.Minute)
		before := a.carried() + b.carried()
		const minutes, perPing = 10, 400 // the carrier asks too
		<-time.After(minutes * time.Minute)
		if n := a.carried() + b.carried() - before; n > 2*minutes*4*perPing {
			t.Errorf("idle lines carried %d bytes in %d minutes", n, minutes)
		}
		f.Close()
	})
}
