package link_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
)

// mustOpen opens a flow and checks that it carries bytes both ways.
func mustOpen(t *testing.T, c *link.Client, ref link.GrantRef, port uint16) *flow.Flow {
	t.Helper()
	f, err := c.OpenTCP(t.Context(), ref, port)
	if err != nil {
		t.Fatal(err)
	}
	mustEcho(t, f)
	return f
}

func mustEcho(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "ping" {
		t.Fatalf("echo = %q, %v", buf, err)
	}
}

// appEnd collects how the app's connection ended.
type appEnd struct{ err chan error }

// echoUntil is echo that reports the error of the read that ended it.
func (e appEnd) echoUntil(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 1024)
	for {
		n, err := c.Read(buf)
		if err != nil {
			e.err <- err
			return
		}
		_, _ = c.Write(buf[:n])
	}
}

func TestCloseGrantCutsBothSides(t *testing.T) {
	w := newWorld(t, link.Limits{})
	end := appEnd{make(chan error, 2)}
	w.handler.app(80, end.echoUntil)
	closed := make(chan frame.Code, 1)
	c := w.client(newCredentials(t), func(cfg *link.ClientConfig) {
		cfg.Events.GrantClosed = func(_ link.GrantRef, code frame.Code) { closed <- code }
	}, &road{name: "a"})
	present(t, c, "gnt_a", 1)
	present(t, c, "gnt_b", 2)
	f, other := mustOpen(t, c, 1, 80), mustOpen(t, c, 2, 80)
	w.handler.revoke("gnt_a", frame.Revoked)
	if n := w.server.CloseGrant("gnt_a", frame.Revoked); n != 1 {
		t.Errorf("CloseGrant cut %d flows, want 1", n)
	}
	if err := <-end.err; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("app saw %v, want a reset", err)
	}
	if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("client saw %v, want revoked", err)
	}
	if code := <-closed; code != frame.Revoked {
		t.Errorf("GrantClosed(%v), want revoked", code)
	}
	if _, err := c.OpenTCP(t.Context(), 1, 80); frame.CodeOf(err) != frame.GrantUnknown {
		t.Errorf("open after revocation = %v", err)
	}
	if err := c.Present(t.Context(), envelope("gnt_a", 80), 1); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("present after revocation = %v, want revoked", err)
	}
	mustEcho(t, other)
}

func present(t *testing.T, c *link.Client, grant string, ref link.GrantRef) {
	t.Helper()
	if err := c.Present(t.Context(), envelope(grant, 80), ref); err != nil {
		t.Fatal(err)
	}
}

func TestRevokedWhileDetachedIsNotResumed(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	r := &road{name: "a"}
	c := granted(t, w, r)
	f := mustOpen(t, c, 1, 80)
	r.kill()
	w.handler.revoke("gnt_a", frame.Revoked)
	w.server.CloseGrant("gnt_a", frame.Revoked)
	r.open()
	c.Probe()
	if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("client saw %v, want revoked", err)
	}
}

func TestResetsAreTold(t *testing.T) {
	w := newWorld(t, link.Limits{})
	end := appEnd{make(chan error, 1)}
	w.handler.app(80, end.echoUntil)
	c := granted(t, w, &road{name: "a"})
	f := mustOpen(t, c, 1, 80)
	f.Abort(frame.Reset)
	if err := <-end.err; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("app saw %v, want a reset", err)
	}
	w.handler.app(80, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 10))
		_ = conn.(interface{ SetLinger(int) error }).SetLinger(0)
		_ = conn.Close()
	})
	f, err := c.OpenTCP(t.Context(), 1, 80)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write([]byte("x"))
	if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Reset {
		t.Errorf("client saw %v, want reset", err)
	}
}

func TestWithdrawClosesOnlyItsFlows(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	c := granted(t, w, &road{name: "a"})
	present(t, c, "gnt_b", 2)
	f, other := mustOpen(t, c, 1, 80), mustOpen(t, c, 2, 80)
	c.Withdraw(1)
	if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Withdrawn {
		t.Errorf("client saw %v, want withdrawn", err)
	}
	if rec := w.handler.awaitClosed(t, 1)[0]; rec.Cause != frame.Withdrawn {
		t.Errorf("cause = %v, want withdrawn", rec.Cause)
	}
	mustEcho(t, other)
}

// A device must not reach another device's flow by its id, nor with a grant of its own.
func TestFlowsAreNotSharedBetweenDevices(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	a := granted(t, w, &road{name: "a"})
	b := granted(t, w, &road{name: "b"})
	fa, fb := mustOpen(t, a, 1, 80), mustOpen(t, b, 1, 80)
	if fa.ID() != fb.ID() {
		t.Fatalf("the test wants equal ids, got %d and %d", fa.ID(), fb.ID())
	}
	fb.Abort(frame.Reset)
	w.handler.awaitClosed(t, 1)
	mustEcho(t, fa)
}

func TestNewInstanceResetsTheOld(t *testing.T) {
	w := newWorld(t, link.Limits{})
	end := appEnd{make(chan error, 2)}
	w.handler.app(80, end.echoUntil)
	creds := newCredentials(t)
	ra := &road{name: "a"}
	a := w.client(creds, nil, ra)
	present(t, a, "gnt_a", 1)
	mustOpen(t, a, 1, 80)
	ra.kill()
	b := w.client(creds, nil, &road{name: "b"})
	present(t, b, "gnt_a", 1)
	if err := <-end.err; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("app saw %v, want a reset", err)
	}
	if rec := w.handler.awaitClosed(t, 1)[0]; rec.Cause != frame.Superseded {
		t.Errorf("cause = %v, want superseded", rec.Cause)
	}
	mustOpen(t, b, 1, 80)
}

func TestRestartedConnectorAnswersGone(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	r := &road{name: "a"}
	c := granted(t, w, r)
	f := mustOpen(t, c, 1, 80)
	old := w.server
	w.startServer(link.Limits{})
	r.flap()
	if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Gone {
		t.Errorf("client saw %v, want gone", err)
	}
	mustOpen(t, c, 1, 80) // the grant was presented again
	_ = old.Close()
}

// The carrier dies while the app is being dialled: the open is repeated, the dial is not.
func TestOpenIsAtMostOnce(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	gate := make(chan struct{})
	w.handler.dialGate = gate
	r := &road{name: "a"}
	c := granted(t, w, r)
	opened := make(chan *flow.Flow, 1)
	go func() {
		f, _ := c.OpenTCP(context.Background(), 1, 80)
		opened <- f
	}()
	for w.handler.dialled() == 0 {
		w.handler.awaitChange(t)
	}
	r.flap()
	close(gate)
	f := <-opened
	if f == nil {
		t.Fatal("the open failed")
	}
	mustEcho(t, f)
	if n := w.handler.dialled(); n != 1 {
		t.Errorf("the app was dialled %d times", n)
	}
}

func TestHoldStopsEveryByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		w.handler.app(80, echo)
		c := granted(t, w, &road{name: "a"})
		f := mustOpen(t, c, 1, 80)
		w.server.Hold("gnt_a")
		_, _ = f.Write([]byte("held"))
		_ = f.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := f.Read(make([]byte, 4)); n != 0 || !errors.Is(err, errDeadline) {
			t.Errorf("a held flow delivered %d bytes, %v", n, err)
		}
		if _, err := c.OpenTCP(t.Context(), 1, 80); frame.CodeOf(err) != frame.NotLive {
			t.Errorf("open on a held grant = %v, want not_live", err)
		}
		_ = f.SetReadDeadline(time.Time{})
		w.server.Resume("gnt_a")
		buf := make([]byte, 4)
		if _, err := io.ReadFull(f, buf); err != nil || string(buf) != "held" {
			t.Errorf("after resume: %q, %v", buf, err)
		}
	})
}

func TestDetachedTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		end := appEnd{make(chan error, 1)}
		w.handler.app(80, end.echoUntil)
		r := &road{name: "a"}
		c := granted(t, w, r)
		f := mustOpen(t, c, 1, 80)
		lost := time.Now()
		r.kill()
		if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.DetachedTooLong {
			t.Errorf("client saw %v, want detached_too_long", err)
		}
		<-end.err
		if d := time.Since(lost); d < link.DefaultDetachFor || d > link.DefaultDetachFor+2*time.Second {
			t.Errorf("the flow lived %s without a carrier, want %s", d, link.DefaultDetachFor)
		}
	})
}

func TestDetachedFlowResumesBeforeItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		w.handler.app(80, echo)
		r := &road{name: "a"}
		c := granted(t, w, r)
		f := mustOpen(t, c, 1, 80)
		r.kill()
		time.AfterFunc(100*time.Second, r.open)
		mustEcho(t, f)
	})
}

func TestPeerWithoutGrantIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		down := make(chan struct{}, 1)
		c := w.client(newCredentials(t), func(cfg *link.ClientConfig) {
			cfg.Events.CarrierDown = func(string, error) { down <- struct{}{} }
		}, &road{name: "a"})
		if _, err := c.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-down
		if d := time.Since(start); d > link.DefaultPresentWithin+time.Second {
			t.Errorf("closed after %s", d)
		}
	})
}

func TestSilentCarrierIsLeftQuickly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		w.handler.app(80, echo)
		a, b := &road{name: "a", latency: 5 * time.Millisecond}, &road{name: "b", latency: 5 * time.Millisecond}
		c := granted(t, w, a, b)
		f := mustOpen(t, c, 1, 80)
		synctest.Wait()
		for len(c.Status().Carriers) < 2 {
			mustEcho(t, f)
		}
		a.cut()
		start := time.Now()
		mustEcho(t, f)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("stalled for %s", d)
		}
	})
}

func TestLimitsAndDrain(t *testing.T) {
	w := newWorld(t, link.Limits{FlowsPerPeer: 3})
	w.handler.app(80, echo)
	draining := make(chan struct{}, 1)
	c := w.client(newCredentials(t), func(cfg *link.ClientConfig) {
		cfg.Events.Draining = func() { draining <- struct{}{} }
	}, &road{name: "a"})
	present(t, c, "gnt_a", 1)
	f := mustOpen(t, c, 1, 80)
	mustOpen(t, c, 1, 80)
	third := mustOpen(t, c, 1, 80)
	if _, err := c.OpenTCP(t.Context(), 1, 80); frame.CodeOf(err) != frame.TooManyFlows {
		t.Errorf("fourth open = %v, want too_many_flows", err)
	}
	third.Abort(frame.Reset)
	w.handler.awaitClosed(t, 1)
	w.server.Drain()
	<-draining
	if _, err := c.OpenTCP(t.Context(), 1, 80); frame.CodeOf(err) != frame.Draining {
		t.Errorf("open while draining = %v", err)
	}
	mustEcho(t, f)
}

func TestClosePeer(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	bad, good := newCredentials(t), newCredentials(t)
	a := w.client(bad, nil, &road{name: "a"})
	b := w.client(good, nil, &road{name: "b"})
	present(t, a, "gnt_a", 1)
	present(t, b, "gnt_b", 1)
	fa, fb := mustOpen(t, a, 1, 80), mustOpen(t, b, 1, 80)
	w.handler.revoke("gnt_a", frame.Revoked)
	if n := w.server.ClosePeer(bad.KeyID(), frame.Revoked); n != 1 {
		t.Errorf("ClosePeer cut %d flows", n)
	}
	if _, err := fa.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("client saw %v, want revoked", err)
	}
	mustEcho(t, fb)
}

func TestThousandFlowsMove(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	a, b := &road{name: "a"}, &road{name: "b"}
	c := granted(t, w, a, b)
	count := 1000
	if raceOn {
		count = 100
	}
	flows := make([]*flow.Flow, count)
	var wg sync.WaitGroup
	for i := range flows {
		wg.Go(func() {
			f, err := c.OpenTCP(t.Context(), 1, 80)
			if err != nil {
				t.Error(err)
				return
			}
			flows[i] = f
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	a.flap()
	b.flap()
	for _, f := range flows {
		wg.Go(func() { echoAndEnd(t, f) })
	}
	wg.Wait()
	for _, rec := range w.handler.awaitClosed(t, len(flows)) {
		if rec.Cause != frame.OK || rec.ToApp != 4 || rec.FromApp != 4 {
			t.Fatalf("record = cause %v, %d to app, %d from app", rec.Cause, rec.ToApp, rec.FromApp)
		}
	}
	if n := w.server.Flows(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

func echoAndEnd(t *testing.T, f *flow.Flow) {
	if _, err := f.Write([]byte("ping")); err != nil {
		t.Error(err)
		return
	}
	_ = f.CloseWrite()
	if got, err := io.ReadAll(f); err != nil || string(got) != "ping" {
		t.Errorf("echo = %q, %v", got, err)
	}
}

func TestUDPMovesAndEnds(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, packetEcho)
	a, b := &road{name: "a"}, &road{name: "b"}
	c := granted(t, w, a, b)
	p, err := c.OpenUDP(t.Context(), 1, 80)
	if err != nil {
		t.Fatal(err)
	}
	mustExchange(t, p, 10)
	mustExchange(t, p, 60000)
	a.flap()
	mustExchange(t, p, 100)
	w.server.CloseGrant("gnt_a", frame.Revoked)
	if _, err := p.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Revoked {
		t.Errorf("client saw %v, want revoked", err)
	}
}

// packetEcho is echo for a fake app connection that keeps no datagram borders; the test
// sends one datagram at a time.
func packetEcho(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		_, _ = c.Write(buf[:n])
	}
}

// mustExchange repeats a datagram until it comes back: UDP may lose it on the way.
func mustExchange(t *testing.T, p *flow.Packets, size int) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for range 100 {
		if _, err := p.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		_ = p.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		for {
			n, err := p.Read(buf)
			if n == size {
				return
			}
			if err != nil {
				break
			}
		}
	}
	t.Fatalf("no answer to %d bytes: %v", size, p.Err())
}

func TestUDPIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		w.handler.app(80, packetEcho)
		c := granted(t, w, &road{name: "a"})
		p, err := c.OpenUDP(t.Context(), 1, 80)
		if err != nil {
			t.Fatal(err)
		}
		mustExchange(t, p, 10)
		start := time.Now()
		_ = p.SetReadDeadline(time.Time{})
		if _, err := p.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Idle {
			t.Errorf("client saw %v, want idle", err)
		}
		if d := time.Since(start); d < link.DefaultUDPIdle || d > link.DefaultUDPIdle+time.Second {
			t.Errorf("ended after %s", d)
		}
	})
}
