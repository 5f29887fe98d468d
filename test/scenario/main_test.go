package scenario

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m, storetest.Leaks) }

const (
	// patience bounds every wait; it is long, because the machine may be busy.
	patience = 30 * time.Second
	// pollEvery is how often eventually looks at what announces no change.
	pollEvery = 10 * time.Millisecond
)

// eventually waits until ok holds; what names it when it does not.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("never: %s", what)
		}
	}
}

// within returns a context that ends with the test or after patience.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// process is a part of the product that runs until it is stopped.
type process struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done
	// tolerate says that the story has broken the part, which may complain at its end.
	tolerate bool
}

// start runs a part; it is stopped at the end of the test at the latest.
func start(t testing.TB, name string, run func(ctx context.Context) error) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{cancel: cancel, done: make(chan struct{})}
	go func() { // stop waits for it
		defer close(p.done)
		p.err = run(ctx)
	}()
	t.Cleanup(func() {
		if err := p.stop(); err != nil && !p.tolerate && !errors.Is(err, context.Canceled) {
			t.Errorf("%s ended with %v", name, err)
		}
	})
	return p
}

// stop ends the part and waits for it. It may be called twice.
func (p *process) stop() error {
	p.cancel()
	<-p.done
	return p.err
}

// diary collects the logs of a world and shows them when the test fails.
type diary struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func newLog(t testing.TB) *slog.Logger {
	d := &diary{}
	t.Cleanup(func() {
		if t.Failed() {
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Log("logs:\n" + d.text.String())
		}
	})
	return slog.New(slog.NewTextHandler(d, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
