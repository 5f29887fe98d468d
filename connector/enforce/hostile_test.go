package enforce_test

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
