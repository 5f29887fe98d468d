// Package uplink is the client's control stream: it keeps one Watch call to the broker
// open and hands every push to a Sink. When the broker is away it tries again, spread over
// a window, for as long as it takes; open flows do not need it. The root package wires it.
//
// Run owns everything; it starts no goroutine. A Sink is called from Run only. State may
// be read at any time.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

const (
	retryMin = 500 * time.Millisecond
	retryMax = 30 * time.Second
	// silence ends a stream on which nothing came: a push comes at least every 30 s.
	silence = 75 * time.Second
	// Clock differences: up to warnOffset nothing, up to maxOffset a warning (rule 10).
	warnOffset = 2 * time.Second
	maxOffset  = 5 * time.Minute
	// maxReconnect bounds what the broker may ask for.
	maxReconnect = 10 * time.Minute
)

// ErrClock says that the two clocks are too far apart to work.
var ErrClock = errors.New("the clock of this machine is more than 5 minutes off the broker's; set it")

// errSilent is the cause of a stream that ended because nothing came.
var errSilent = errors.New("nothing heard from the broker")

// Sink takes what the broker pushes. It must not block.
type Sink interface {
	Catalog(c *controlv1.Catalog)
	Session(n *controlv1.SessionNews)
	Ended(e *controlv1.GrantsEnded)
	ForgetDenials()
	// Connected is called at the first push of each stream.
	Connected()
}

// Watcher opens the stream; the generated DeviceServiceClient is one.
type Watcher interface {
	Watch(ctx context.Context, req *connect.Request[controlv1.WatchRequest]) (*connect.ServerStreamForClient[controlv1.DevicePush], error)
}

// Config is what an Uplink needs; all fields but Witness are required.
type Config struct {
	Client  Watcher
	Version string
	Sink    Sink
	// Witness remembers the broker's audit; nil is nobody.
	Witness *control.Witness
	Log     *slog.Logger
}

// State is how the uplink stands.
type State struct {
	Connected bool
	Since     time.Time
	// Problem is the last error in words, empty while connected.
	Problem string
	// Err is that error, nil while connected.
	Err error
	// Offset is how far this machine's clock is ahead of the broker's, as last heard.
	Offset time.Duration
}

// Uplink keeps the stream.
type Uplink struct {
	cfg   Config
	log   *slog.Logger
	state atomic.Pointer[State]
}

// New returns an uplink that is not connected yet.
func New(cfg Config) *Uplink {
	u := &Uplink{cfg: cfg, log: cfg.Log.With("component", "uplink")}
	u.state.Store(&State{Since: time.Now(), Problem: "not connected yet"})
	return u
}

// State returns the present state.
func (u *Uplink) State() State { return *u.state.Load() }

// Now is the broker's time as far as it is known.
func (u *Uplink) Now() time.Time { return time.Now().Add(-u.State().Offset) }

// Run keeps the stream open until ctx ends.
func (u *Uplink) Run(ctx context.Context) error {
	retry := retryMin
	for {
		began := time.Now()
		wait, err := u.stream(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the stream ended because we were told to
		}
		if time.Since(began) > retryMax {
			retry = retryMin
		}
		u.down(ctx, err)
		if wait == 0 {
			wait, retry = spread(retry), min(2*retry, retryMax)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func (u *Uplink) down(ctx context.Context, err error) {
	old := u.State()
	u.state.Store(&State{Since: time.Now(), Problem: Problem(err), Err: err, Offset: old.Offset})
	if old.Connected || old.Problem != Problem(err) {
		u.log.WarnContext(ctx, "control stream ended", "error", err)
	}
}

// stream runs one Watch call; wait is set when the broker said when to come back.
func (u *Uplink) stream(ctx context.Context) (wait time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer idle.Stop()
	stream, err := u.cfg.Client.Watch(ctx, connect.NewRequest(&controlv1.WatchRequest{
		Version: u.cfg.Version, Remembered: u.cfg.Witness.Asked(),
	}))
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for first := true; stream.Receive(); first = false {
		idle.Reset(silence)
		msg := stream.Msg()
		if err := u.clock(ctx, msg.TimeMs); err != nil {
			return 0, err
		}
		if first {
			u.cfg.Sink.Connected()
		}
		if r := msg.GetReconnect(); r != nil {
			return reconnectIn(r), errors.New("the broker asked to reconnect")
		}
		u.take(ctx, msg)
	}
	if cause := context.Cause(ctx); cause != nil {
		return 0, cause
	}
	return 0, stream.Err()
}

// take hands one push on; news of a later version is ignored.
func (u *Uplink) take(ctx context.Context, msg *controlv1.DevicePush) {
	switch n := msg.News.(type) {
	case *controlv1.DevicePush_Catalog:
		u.cfg.Sink.Catalog(n.Catalog)
	case *controlv1.DevicePush_Session:
		u.cfg.Sink.Session(n.Session)
	case *controlv1.DevicePush_Ended:
		u.cfg.Sink.Ended(n.Ended)
	case *controlv1.DevicePush_Audit:
		u.cfg.Witness.Take(ctx, n.Audit)
	case *controlv1.DevicePush_Denials:
		if n.Denials.GetForget() {
			u.cfg.Sink.ForgetDenials()
		}
	}
}

// clock compares our clock with the broker's time in a push.
func (u *Uplink) clock(ctx context.Context, brokerMS int64) error {
	offset := Offset(time.Now(), brokerMS)
	if err := CheckClock(offset); err != nil {
		return err
	}
	old := u.State()
	if old.Connected && (offset-old.Offset).Abs() <= time.Second {
		return nil
	}
	if offset.Abs() > warnOffset {
		u.log.WarnContext(ctx, "clocks differ", "offset", offset)
	}
	u.state.Store(&State{Connected: true, Since: time.Now(), Offset: offset})
	return nil
}

// Offset is how far now is ahead of the broker's time in milliseconds.
func Offset(now time.Time, brokerMS int64) time.Duration {
	return now.Sub(time.UnixMilli(brokerMS)).Round(time.Millisecond)
}

// CheckClock judges a difference of clocks: an error beyond 5 minutes.
func CheckClock(offset time.Duration) error {
	if offset.Abs() > maxOffset {
		return fmt.Errorf("%w (it is %s off)", ErrClock, offset.Round(time.Second))
	}
	return nil
}

// Problem says in words what keeps the client from its broker.
func Problem(err error) string {
	switch {
	case err == nil:
		return "the broker closed the stream"
	case errors.Is(err, ErrClock), errors.Is(err, control.ErrClock):
		return err.Error()
	case control.ReasonOf(err) == controlv1.Reason_REASON_REMOVED:
		return "an administrator has removed this device"
	case control.ReasonOf(err) == controlv1.Reason_REASON_BLOCKED:
		return "an administrator has blocked this device"
	case connect.CodeOf(err) == connect.CodeUnauthenticated:
		return "the broker does not accept this device's certificate"
	case connect.CodeOf(err) == connect.CodePermissionDenied:
		return "the broker has blocked or removed this device"
	case connect.CodeOf(err) == connect.CodeAborted:
		return "another program on this machine uses the same device"
	default:
		return "the broker cannot be reached: " + err.Error()
	}
}

func reconnectIn(r *controlv1.Reconnect) time.Duration {
	bound := maxReconnect.Milliseconds()
	window := time.Duration(min(max(r.SpreadMs, 1), bound)) * time.Millisecond
	after := time.Duration(min(max(r.AfterMs, 0), bound)) * time.Millisecond
	return after + rand.N(window) + time.Millisecond
}

func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
