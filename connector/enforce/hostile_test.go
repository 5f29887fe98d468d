package enforce_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// slowLinks delays a hold until the test lets it go.
type slowLinks struct {
	*world
	release chan struct{}
}

func (s slowLinks) Hold(id ids.GrantID) {
	<-s.release
	s.world.Hold(id)
}

// A limited grant is limited by whom it must not trust: the connector.
func TestGrantLimitsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, g := w.present()
		limited := *g
		limited.ID, limited.Flows, limited.BytesPerSecond = ids.New[ids.GrantID](), 2, 1000
		mt, code := w.Present(t.Context(), device, hello, grant.Seal(broker, &limited))
		if code.Err() != nil {
			t.Fatal(code)
		}
		rec := record(mt, 80)
		var first any
		for i, want := range []frame.Code{frame.OK, frame.OK, frame.TooManyFlows} {
			handle, code := w.FlowOpened(t.Context(), rec)
			if code != want {
				t.Errorf("flow %d: %v, want %v", i+1, code, want)
			}
			if i == 0 {
				first = handle
			}
		}
		a, code := w.Enforcer.Dial(t.Context(), mt, rec.FlowOpen)
		b, again := w.Enforcer.Dial(t.Context(), mt, rec.FlowOpen)
		if code != frame.OK || again != frame.OK {
			t.Fatal(code, again)
		}
		start := time.Now()
		for _, conn := range []net.Conn{a, b} { // flows of one grant share its rate
			if n, err := conn.Write(make([]byte, 40_000)); n != 40_000 || err != nil {
				t.Fatal(n, err)
			}
		}
		if took := time.Since(start); took < 14*time.Second || took > 16*time.Second {
			t.Errorf("80,000 bytes at 1,000 a second after a burst of 64 KiB took %s", took)
		}
		time.AfterFunc(time.Second, func() { _ = a.Close() })
		if _, err := a.Write(make([]byte, 60_000)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed connection waits for its rate: %v", err)
		}
		rec.Handle = first
		w.FlowClosed(rec)
		if _, code := w.FlowOpened(t.Context(), rec); code != frame.OK {
			t.Errorf("after one flow ended: %v", code)
		}
	})
}

// The statement that ends an outage comes while the hold is being carried out: the resume
// must follow the hold, or the flows would stand still for ever.
func TestResumeFollowsTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		slow := slowLinks{w, make(chan struct{})}
		w.SetLinks(slow)
		_, g := w.present()
		held := *g
		held.ID, held.Outage, held.OutageGrace = ids.New[ids.GrantID](), grant.OutageHold, time.Minute
		if _, code := w.Present(t.Context(), device, hello, grant.Seal(broker, &held)); code.Err() != nil {
			t.Fatal(code)
		}
		w.now = w.now.Add(61 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			_ = w.Run(ctx)
		}()
		synctest.Wait() // the hold is being carried out
		stated := make(chan struct{})
		go func() {
			defer close(stated)
			w.statement()
		}()
		for range 1000 { // the statement goes as far as it may
			runtime.Gosched()
		}
		close(slow.release)
		<-stated
		cancel()
		<-ran
		if got := strings.Join(w.events, " "); !strings.HasSuffix(got, "hold resume") {
			t.Errorf("order: %s, want the resume last", got)
		}
	})
}
