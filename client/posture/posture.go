// Package posture decides when the client looks at this machine and what it tells
// the broker: it collects facts on a schedule and at events, damps those that
// flicker, and hands out numbered reports.
//
// The client's root wires it between platform/posture and the control connection.
// It judges no fact and knows no rule; what a fact is worth is decided by the
// broker.
//
// [Core] is a plain value without clock, goroutine or I/O. [Reporter] is the thin
// loop around it; its methods are safe for concurrent use.
package posture

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/platform/posture"
)

// ClientVersion is the name of the fact that this package adds itself.
const ClientVersion = "client_version"

// Report is one message to the broker.
type Report struct {
	// Sequence rises with every report, also over restarts of the client, so that
	// the broker can drop what arrives late or twice.
	Sequence uint64
	// Time is when the report was made, by this machine's clock.
	Time time.Time
	// ClientVersion is the version of this program.
	ClientVersion string
	// TTL is how long each fact counts from its observation.
	TTL time.Duration
	// Facts are all facts, sorted by name.
	Facts []posture.Fact
}

// Config wires a Reporter.
type Config struct {
	// Collect reads the facts of this machine.
	Collect func(now time.Time) []posture.Fact
	// Send gives a report to the broker; it returns when the broker has it.
	Send func(ctx context.Context, r Report) error
	// Events tells that something changed, such as the network; each value causes
	// a look at once. Nil means only the schedule.
	Events <-chan struct{}
	// Version is the version of the client.
	Version string
	// Log receives changes of state.
	Log *slog.Logger
}

// sendWait bounds one report; the next one carries everything anyway.
const sendWait = 20 * time.Second

// Reporter collects and reports until its Run ends.
type Reporter struct {
	cfg     Config
	log     *slog.Logger
	trigger chan struct{} // one place: more triggers before the look are the same look

	mu      sync.Mutex
	current []posture.Fact
}

// New gives a reporter that does nothing yet.
func New(cfg Config) *Reporter {
	return &Reporter{cfg: cfg, log: cfg.Log.With("component", "posture"), trigger: make(chan struct{}, 1)}
}

// Current gives the facts as last collected, for the status of the client.
func (r *Reporter) Current() []posture.Fact {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.current)
}

// Trigger asks for a look at once and a full report, as after signing in.
func (r *Reporter) Trigger() {
	select {
	case r.trigger <- struct{}{}:
	default: // already asked
	}
}

// Run collects and reports until ctx is done.
func (r *Reporter) Run(ctx context.Context) error {
	core := NewCore(r.cfg.Version)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-r.cfg.Events:
			core.Hurry(time.Now())
		case <-r.trigger:
			core.Force(time.Now())
		}
		r.step(ctx, core)
		timer.Reset(max(0, time.Until(core.Next())))
	}
}

// step does what is due now.
func (r *Reporter) step(ctx context.Context, core *Core) {
	now := time.Now()
	if core.LookDue(now) {
		for _, c := range core.Observe(now, r.cfg.Collect(now)) {
			r.log.Info("fact changed", "fact", c.Name, "state", c.State.String(), "reason", c.Evidence)
		}
		r.publish(core.Facts())
	}
	report, due := core.Report(now)
	if !due {
		return
	}
	sendCtx, cancel := context.WithTimeout(ctx, sendWait)
	defer cancel()
	err := r.cfg.Send(sendCtx, report)
	if err != nil {
		r.log.Debug("report not sent", "error", err)
	}
	core.Sent(time.Now(), err == nil)
}

func (r *Reporter) publish(facts []posture.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = facts
}
