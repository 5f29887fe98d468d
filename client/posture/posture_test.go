package posture_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	client "github.com/postern-zt/postern/client/posture"
	"github.com/postern-zt/postern/platform/posture"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a machine whose facts a test sets and a broker that takes reports.
type world struct {
	mu      sync.Mutex
	state   posture.State
	looks   int
	fail    error
	reports []client.Report
	at      []time.Duration // since start
	start   time.Time
	events  chan struct{}
}

func newWorld() *world {
	return &world{state: posture.Pass, start: time.Now(), events: make(chan struct{}, 1)}
}

func (w *world) set(s posture.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = s
}

func (w *world) breaks(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

func (w *world) collect(now time.Time) []posture.Fact {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	return []posture.Fact{{Name: posture.Firewall, State: w.state, Evidence: "test", Observed: now}}
}

func (w *world) send(_ context.Context, r client.Report) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	w.reports, w.at = append(w.reports, r), append(w.at, time.Since(w.start))
	return nil
}

// firewall gives the states reported for the firewall, with their times.
func (w *world) firewall() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for i, r := range w.reports {
		f := r.Facts[slices.IndexFunc(r.Facts, func(f posture.Fact) bool { return f.Name == posture.Firewall })]
		out = append(out, w.at[i].String()+" "+f.State.String())
	}
	return out
}

// run lets a reporter live in the bubble; do drives the world.
func run(t *testing.T, do func(w *world, r *client.Reporter)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		r := client.New(client.Config{
			Collect: w.collect, Send: w.send, Events: w.events, Version: "1.2.3", Log: slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		do(w, r)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

// pass lets fake time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func expect(t *testing.T, w *world, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, w.firewall()); d != "" {
		t.Errorf("reports (-want +got):\n%s", d)
	}
}

func TestReportsAtStartAndEveryInterval(t *testing.T) {
	run(t, func(w *world, r *client.Reporter) {
		pass(125 * time.Second)
		expect(t, w, "0s pass", "1m0s pass", "2m0s pass")
		last := w.reports[2]
		if last.ClientVersion != "1.2.3" || last.TTL != client.TTL || !last.Time.Equal(w.start.Add(2*time.Minute)) {
			t.Errorf("report = %+v", last)
		}
		version := last.Facts[0]
		if version.Name != client.ClientVersion || version.Data != "1.2.3" || !version.Observed.Equal(last.Time) {
			t.Errorf("version fact = %+v", version)
		}
		if got := r.Current(); len(got) != 2 {
			t.Errorf("Current = %v", got)
		}
	})
}

func TestLossAtAnEventIsReportedAtOnce(t *testing.T) {
	run(t, func(w *world, _ *client.Reporter) {
		pass(10 * time.Second)
		w.set(posture.Fail)
		w.events <- struct{}{}
		synctest.Wait()
		expect(t, w, "0s pass", "10s fail")
	})
}

func TestRecoveryMustSettle(t *testing.T) {
	run(t, func(w *world, _ *client.Reporter) {
		w.set(posture.Fail)
		pass(time.Minute)
		w.set(posture.Pass)
		w.events <- struct{}{}
		pass(client.MinGap + client.Settle)
		expect(t, w, "0s pass", "1m0s fail", "1m6s pass")
	})
}

func TestFlickerOfUnknownIsNotReported(t *testing.T) {
	run(t, func(w *world, _ *client.Reporter) {
		pass(10 * time.Second)
		w.set(posture.Unknown)
		w.events <- struct{}{}
		pass(2 * time.Second)
		w.set(posture.Pass)
		pass(70 * time.Second)
		for _, line := range w.firewall() {
			if line[len(line)-4:] != "pass" {
				t.Errorf("reported %q", line)
			}
		}
	})
}

func TestUnknownThatStaysIsReported(t *testing.T) {
	run(t, func(w *world, _ *client.Reporter) {
		pass(10 * time.Second)
		w.set(posture.Unknown)
		w.events <- struct{}{}
		pass(client.Settle)
		expect(t, w, "0s pass", "15s unknown")
	})
}

func TestFailedReportIsRepeatedWithBackoff(t *testing.T) {
	run(t, func(w *world, _ *client.Reporter) {
		pass(time.Second)
		w.breaks(errors.New("no broker"))
		w.set(posture.Fail)
		w.events <- struct{}{}
		pass(4 * time.Second)
		w.breaks(nil)
		pass(10 * time.Second)
		expect(t, w, "0s pass", "8s fail")
	})
}

func TestTriggerReportsAtOnce(t *testing.T) {
	run(t, func(w *world, r *client.Reporter) {
		pass(20 * time.Second)
		r.Trigger()
		r.Trigger()
		synctest.Wait()
		if got := w.firewall(); len(got) < 2 || got[1] != "20s pass" {
			t.Errorf("reports = %v, want one at 20s", got)
		}
	})
}

func TestManyEventsCauseFewLooks(t *testing.T) {
	run(t, func(w *world, _ *client.Reporter) {
		for range 100 {
			w.events <- struct{}{}
			pass(10 * time.Millisecond)
		}
		if w.looks > 3 {
			t.Errorf("%d looks in a second, want at most 3", w.looks)
		}
	})
}

func TestSequenceRises(t *testing.T) {
	run(t, func(w *world, r *client.Reporter) {
		for range 5 {
			r.Trigger()
			synctest.Wait()
		}
		for i := 1; i < len(w.reports); i++ {
			if w.reports[i].Sequence <= w.reports[i-1].Sequence {
				t.Errorf("sequence %d after %d", w.reports[i].Sequence, w.reports[i-1].Sequence)
			}
		}
	})
}

func TestFactThatIsNoLongerCollectedBecomesUnknown(t *testing.T) {
	now := time.Unix(1e9, 0)
	c := client.NewCore("1")
	c.Observe(now, []posture.Fact{{Name: "x", State: posture.Pass, Observed: now}})
	changed := c.Observe(now.Add(time.Minute), nil)
	if len(changed) != 1 || changed[0].Name != "x" || changed[0].State != posture.Unknown {
		t.Errorf("changed = %v, want x unknown", changed)
	}
}

// The invariants of the damping under any sequence of observations: a loss is
// believed at once; pass is believed only after it was seen for Settle; an
// observation time is never newer than the observation of that state.
func TestDampingInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		c := client.NewCore("1")
		var since time.Time // when the machine took its present state
		seen, first := posture.State(-1), true
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 8000).Draw(t, "ms")) * time.Millisecond)
			state := rapid.SampledFrom([]posture.State{posture.Pass, posture.Fail, posture.Unknown}).Draw(t, "state")
			if state != seen {
				seen, since = state, now
			}
			c.Observe(now, []posture.Fact{{Name: "x", State: state, Observed: now}})
			believed := c.Facts()[1]
			switch {
			case state == posture.Fail && believed.State != posture.Fail:
				t.Fatalf("a loss is believed as %v", believed.State)
			case believed.State == state && !believed.Observed.Equal(now):
				t.Fatalf("observed at %v, want %v", believed.Observed, now)
			case believed.State != state && !believed.Observed.Before(now):
				t.Fatal("an old state got a new time")
			case believed.State != state && now.Sub(since) >= client.Settle && !first:
				t.Fatalf("%v seen for %v and not believed", state, now.Sub(since))
			}
			first = false
		}
	})
}
