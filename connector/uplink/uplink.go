// Package uplink is the connector's control stream: it keeps one Watch call to the broker
// open, hands every push to a Sink and acknowledges what the Sink has made durable. When
// the broker is away it tries again, spread over a window, for as long as it takes; the
// guard's outage modes rule meanwhile.
//
// Run owns everything; it starts no goroutine. A Sink is called from Run only.
package uplink

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

const (
	retryMin = 500 * time.Millisecond
	retryMax = 30 * time.Second
	// callTimeout bounds an acknowledgement. Pushes are read meanwhile: a broker whose store
	// does not answer must not keep a revocation from us.
	callTimeout = 3 * time.Second
	// silence ends a stream on which nothing came: statements come every 15 s.
	silence = 50 * time.Second
	// streamLife renews the stream, which brings fresh relay tickets: they live 48 h.
	streamLife = 12 * time.Hour
	// Clock differences: up to warnOffset nothing, up to maxOffset a warning.
	warnOffset = 2 * time.Second
	maxOffset  = 5 * time.Minute
	// maxPush bounds one push: an assignment with all apps of a large site.
	maxPush = 8 << 20
)

// ErrClock says that the two clocks are too far apart to work.
var ErrClock = errors.New("the clock of this machine is more than 5 minutes off the broker's; set it")

// ErrRemoved says that an administrator removed this connector, which is final: its key is
// never let in again.
var ErrRemoved = errors.New("an administrator removed this connector")

// errRenew ends a stream to begin it anew.
var errRenew = errors.New("time for fresh tickets")

// Sink takes what the broker pushes. An error of Statement that is guard.ErrGap makes the
// uplink ask for everything; any other error drops the message, which denies.
type Sink interface {
	Keys(keys seal.Keys)
	Assignment(envelope []byte) error
	// Statement returns after the guard's mark is durable.
	Statement(envelope []byte) error
	Relays(paths []*controlv1.RelayPath)
	// Holds is what is in memory, so that the broker sends the rest: nothing is revoked
	// before the first statement, whatever an earlier process had applied.
	Holds() guard.Mark
	// Active returns the grants with an idle limit on which something moved since the last
	// call; NotReported gives back those of which the broker did not hear.
	Active() []ids.GrantID
	NotReported(list []ids.GrantID)
}

// Config is what an Uplink needs; all fields but Witness and Now are required.
type Config struct {
	HTTP    *http.Client
	Broker  control.Broker
	CA      *x509.Certificate
	Version string
	Sink    Sink
	// Witness remembers the broker's audit; nil is nobody.
	Witness *control.Witness
	// Now is time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// Uplink keeps the stream. State is safe to read while Run runs.
type Uplink struct {
	cfg    Config
	client controlv1connect.ConnectorServiceClient
	log    *slog.Logger
	state  atomic.Pointer[State]
}

// State is how the uplink stands, for status and health.
type State struct {
	Connected bool
	Since     time.Time
	// Problem is the last error in words, empty while connected.
	Problem string
	// Offset is how far this machine's clock is ahead of the broker's.
	Offset time.Duration
}

// New returns an uplink that is not connected yet.
func New(cfg Config) *Uplink {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	u := &Uplink{cfg: cfg, log: cfg.Log.With("component", "uplink")}
	u.client = controlv1connect.NewConnectorServiceClient(cfg.HTTP, cfg.Broker.BaseURL(), connect.WithReadMaxBytes(maxPush))
	u.state.Store(&State{Since: time.Now(), Problem: "not connected yet"})
	return u
}

// State returns the present state.
func (u *Uplink) State() State { return *u.state.Load() }

// Client returns the RPC client, for health reports and shipping.
func (u *Uplink) Client() controlv1connect.ConnectorServiceClient { return u.client }

// Shipper delivers flow records over c.
func Shipper(c controlv1connect.ConnectorServiceClient) flowlog.Shipper {
	return func(ctx context.Context, b flowlog.Batch) (uint64, error) {
		resp, err := c.Ship(ctx, connect.NewRequest(&controlv1.ShipRequest{Records: b.Records, SignedHead: b.SignedHead}))
		if connect.CodeOf(err) == connect.CodeInvalidArgument && connect.IsWireError(err) {
			return 0, fmt.Errorf("%w: %w", flowlog.ErrRefused, err)
		}
		if err != nil {
			return 0, err
		}
		return resp.Msg.Through, nil
	}
}

// Run keeps the stream open until ctx ends, or returns ErrRemoved.
func (u *Uplink) Run(ctx context.Context) error {
	retry := retryMin
	for ctx.Err() == nil {
		began := time.Now()
		wait, err := u.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > retryMax {
			retry = retryMin
		}
		if errors.Is(err, errRenew) {
			continue
		}
		u.down(ctx, err)
		if Removed(err) {
			return ErrRemoved
		}
		if wait == 0 {
			wait, retry = spread(retry), min(2*retry, retryMax)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
	return nil
}

func (u *Uplink) down(ctx context.Context, err error) {
	// The connection may stand on a certificate that has been replaced since, or lead to a
	// broker that does not want it: the next try opens a new one.
	u.cfg.HTTP.CloseIdleConnections()
	u.state.Store(&State{Since: time.Now(), Problem: Problem(err)})
	u.log.WarnContext(ctx, "control stream ended", "error", err)
}

// stream runs one Watch call; wait is set when the broker said when to come back.
func (u *Uplink) stream(ctx context.Context) (wait time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	due := make(chan struct{}, 1) // an acknowledgement waits; several are one
	var work sync.WaitGroup
	work.Go(func() { u.acknowledgeWhenDue(ctx, due) })
	defer func() {
		cancel(nil)
		work.Wait()
	}()
	idle := time.AfterFunc(silence, func() { cancel(errors.New("nothing heard from the broker")) })
	defer idle.Stop()
	renew := time.AfterFunc(spread(streamLife), func() { cancel(errRenew) })
	defer renew.Stop()
	held := u.cfg.Sink.Holds()
	stream, err := u.client.Watch(ctx, connect.NewRequest(&controlv1.WatchRequest{
		Version: u.cfg.Version, Epoch: held.Epoch, Sequence: held.Sequence, Revoked: held.Revoked,
		Remembered: u.cfg.Witness.Asked(),
	}))
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		idle.Reset(silence)
		msg := stream.Msg()
		if err := u.clock(ctx, msg.TimeMs); err != nil {
			return 0, err
		}
		if r := msg.GetReconnect(); r != nil {
			return reconnectIn(r), errors.New("the broker asked to reconnect")
		}
		if err := u.take(ctx, msg, due); err != nil {
			return 0, err
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return 0, cause
	}
	return 0, stream.Err()
}

// clock compares our clock with the broker's time in a push.
func (u *Uplink) clock(ctx context.Context, brokerMS int64) error {
	offset := u.cfg.Now().Sub(time.UnixMilli(brokerMS)).Round(time.Millisecond)
	if offset.Abs() > maxOffset {
		return fmt.Errorf("%w (it is %s off)", ErrClock, offset)
	}
	old := u.State()
	if old.Connected && (offset-old.Offset).Abs() <= time.Second {
		return nil
	}
	since := old.Since
	if !old.Connected {
		since = time.Now()
		u.log.InfoContext(ctx, "connected to the broker")
	}
	if offset.Abs() > warnOffset {
		u.log.WarnContext(ctx, "clocks differ", "offset", offset)
	}
	u.state.Store(&State{Connected: true, Since: since, Offset: offset})
	return nil
}

// take hands one push to the sink. A bad message is dropped, for dropping denies; only a
// gap ends the stream, because then everything must be read anew.
func (u *Uplink) take(ctx context.Context, msg *controlv1.ConnectorPush, due chan<- struct{}) error {
	switch n := msg.News.(type) {
	case *controlv1.ConnectorPush_Keys:
		u.keys(ctx, n.Keys)
	case *controlv1.ConnectorPush_Assignment:
		u.dropped(ctx, "assignment", u.cfg.Sink.Assignment(n.Assignment))
		wake(due)
	case *controlv1.ConnectorPush_Statement:
		err := u.cfg.Sink.Statement(n.Statement)
		if errors.Is(err, guard.ErrGap) {
			return err
		}
		u.dropped(ctx, "statement", err)
		wake(due)
	case *controlv1.ConnectorPush_Relays:
		u.cfg.Sink.Relays(n.Relays.GetRelays())
	case *controlv1.ConnectorPush_Audit:
		u.cfg.Witness.Take(ctx, n.Audit)
	}
	return nil
}

func (u *Uplink) dropped(ctx context.Context, kind string, err error) {
	if err != nil {
		u.log.WarnContext(ctx, "message of the broker refused", "kind", kind, "error", err)
	}
}

// keys takes those signing keys that the pinned CA certifies.
func (u *Uplink) keys(ctx context.Context, k *controlv1.Keys) {
	var pubs []ed25519.PublicKey
	for _, der := range k.GetCertificatesDer() {
		pub, err := control.SignerKey(der, u.cfg.CA, u.cfg.Now())
		if err != nil {
			u.dropped(ctx, "keys", err)
			continue
		}
		pubs = append(pubs, pub)
	}
	u.cfg.Sink.Keys(seal.NewKeys(pubs...))
}

// acknowledgeWhenDue acknowledges until ctx ends.
func (u *Uplink) acknowledgeWhenDue(ctx context.Context, due <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
			u.acknowledge(ctx)
		}
	}
}

// wake leaves a wake-up without waiting; one that already waits is enough.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// acknowledge tells the broker what is applied. One that does not arrive is repeated with
// the next statement; ending the stream over it would keep revocations away.
func (u *Uplink) acknowledge(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, active := u.cfg.Sink.Holds(), u.cfg.Sink.Active()
	req := &controlv1.AcknowledgeRequest{
		StatementSequence: m.Sequence, Revoked: m.Revoked, AssignmentVersion: m.Assignment, ReportsActivity: true,
	}
	for _, id := range active {
		req.ActiveGrants = append(req.ActiveGrants, string(id))
	}
	_, err := u.client.Acknowledge(ctx, connect.NewRequest(req))
	if err == nil {
		return
	}
	u.cfg.Sink.NotReported(active)
	if !errors.Is(ctx.Err(), context.Canceled) {
		u.log.WarnContext(ctx, "acknowledgement not delivered", "error", err)
	}
}

// Removed reports whether err is the broker's word that this connector was removed: not
// that it is blocked, and nothing that comes from the network between. A broker that is older
// than reasons does not say it, and the connector goes on trying.
func Removed(err error) bool { return control.ReasonOf(err) == controlv1.Reason_REASON_REMOVED }

// Problem says in words what keeps the connector from its broker.
func Problem(err error) string {
	switch {
	case err == nil:
		return "the broker closed the stream"
	case Removed(err):
		return "an administrator has removed this connector"
	case control.ReasonOf(err) == controlv1.Reason_REASON_BLOCKED:
		return "an administrator has blocked this connector"
	case connect.CodeOf(err) == connect.CodeUnauthenticated:
		return "the broker does not accept this connector's certificate"
	case connect.CodeOf(err) == connect.CodePermissionDenied:
		return "the broker has blocked or removed this connector"
	default:
		return err.Error()
	}
}

func reconnectIn(r *controlv1.Reconnect) time.Duration {
	spread := time.Duration(min(max(r.SpreadMs, 1), 600_000)) * time.Millisecond
	after := time.Duration(min(max(r.AfterMs, 0), 600_000)) * time.Millisecond
	return after + rand.N(spread) + time.Millisecond
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
