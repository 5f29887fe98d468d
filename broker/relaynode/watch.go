package relaynode

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	retryMin = 200 * time.Millisecond
	retryMax = 10 * time.Second
	// silence ends a stream on which nothing came: a heartbeat comes every 30 s.
	silence = 75 * time.Second
	// maxReconnect bounds how long a broker may keep a relay away.
	maxReconnect = 10 * time.Minute
	// warnOffset and maxOffset: how far the clocks may lie apart without a word, and with
	// a warning only (decisions rule 10).
	warnOffset = 2 * time.Second
	maxOffset  = 5 * time.Minute
)

// State is how the control stream stands. The relay serves in every state.
type State struct {
	Connected bool
	Since     time.Time
	// Problem is the last error in words, empty while connected.
	Problem string
	// Offset is how far this machine's clock is ahead of the broker's.
	Offset time.Duration
}

// State returns the present state.
func (n *Node) State() State { return *n.state.Load() }

// errGoodbye says that the broker asked to come back later.
var errGoodbye = errors.New("the broker asked to reconnect")

// watch keeps the control stream open until ctx ends.
func (n *Node) watch(ctx context.Context) error {
	retry := retryMin
	for ctx.Err() == nil {
		wait, err := n.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if n.State().Connected {
			retry = retryMin
		}
		if wait == 0 {
			wait, retry = spread(retry), min(2*retry, retryMax)
		}
		// The connection may stand on a certificate that has been replaced.
		n.http.CloseIdleConnections()
		n.state.Store(&State{Since: time.Now(), Problem: problem(err)})
		n.log.WarnContext(ctx, "control stream ended, serving on", "error", err, "retry_in", wait)
		pause(ctx, wait)
	}
	return nil
}

// stream runs one Watch call; wait is set when the broker said when to come back.
func (n *Node) stream(ctx context.Context) (wait time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(silence, func() { cancel(errors.New("nothing heard from the broker")) })
	defer idle.Stop()
	stream, err := n.client.Watch(ctx, connect.NewRequest(&controlv1.WatchRequest{Version: n.cfg.Version}))
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		idle.Reset(silence)
		msg := stream.Msg()
		n.take(ctx, msg)
		n.heard(ctx, msg.TimeMs)
		if r := msg.GetReconnect(); r != nil {
			return reconnectIn(r), errGoodbye
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return 0, cause
	}
	return 0, stream.Err()
}

// heard notes that the broker speaks and how its clock lies. A wrong clock here makes good
// tickets look expired, which is refused; news is taken all the same, for news cuts.
func (n *Node) heard(ctx context.Context, brokerMS int64) {
	offset := time.Since(time.UnixMilli(brokerMS)).Round(time.Millisecond)
	old := n.State()
	since := old.Since
	switch {
	case !old.Connected:
		since = time.Now()
		n.log.InfoContext(ctx, "connected to the broker")
	case (offset - old.Offset).Abs() <= time.Second:
		return
	}
	switch {
	case offset.Abs() > maxOffset:
		n.log.ErrorContext(ctx, "the clock of this machine is wrong: tickets will be refused; set it", "offset", offset)
	case offset.Abs() > warnOffset:
		n.log.WarnContext(ctx, "clocks differ", "offset", offset)
	}
	n.state.Store(&State{Connected: true, Since: since, Offset: offset})
}

func (n *Node) take(ctx context.Context, msg *controlv1.RelayPush) {
	switch news := msg.News.(type) {
	case *controlv1.RelayPush_Keys:
		certs := news.Keys.GetCertificatesDer()
		n.setKeys(ctx, certs)
		if err := n.cfg.Store.SaveKeys(certs); err != nil {
			n.log.WarnContext(ctx, "signing keys not kept for the next start", "error", err)
		}
	case *controlv1.RelayPush_Cut:
		n.cut(ctx, news.Cut)
	}
}

// setKeys takes those signing keys that the pinned CA certifies.
func (n *Node) setKeys(ctx context.Context, certs [][]byte) {
	var pubs []ed25519.PublicKey
	for _, der := range certs {
		pub, err := control.SignerKey(der, n.ca, time.Now())
		if err != nil {
			n.log.WarnContext(ctx, "signing key refused", "error", err)
			continue
		}
		pubs = append(pubs, pub)
	}
	keys := seal.NewKeys(pubs...)
	n.keys.Store(&keys)
}

// cut ends links, and voids the tickets of holders and of links without a grant. A stream
// that begins repeats cuts, and one that has been carried out must not hit those who came
// back with a right to it.
func (n *Node) cut(ctx context.Context, c *controlv1.Cut) {
	if !n.cuts.first(c) {
		return
	}
	var handles []ticket.Handle
	for _, h := range c.GetHandles() {
		if h := ticket.Handle(h); h.Valid() {
			handles = append(handles, h)
		}
	}
	rv := relay.Revocation{At: time.UnixMilli(c.GetAtMs())}
	if c.GetVoid() {
		rv.Handles = handles
	} else {
		n.relay.Cut(handles...)
	}
	for _, k := range c.GetHolders() {
		if len(k) == len(ids.KeyID{}) {
			rv.Holders = append(rv.Holders, ids.KeyID(k))
		}
	}
	if len(rv.Holders)+len(rv.Handles) > 0 {
		n.relay.Revoke(rv)
	}
	n.log.InfoContext(ctx, "links cut", "count", len(handles)+len(rv.Holders))
}

// problem says in words what keeps the relay from its broker.
func problem(err error) string {
	switch control.ReasonOf(err) {
	case controlv1.Reason_REASON_REMOVED:
		return "an administrator has removed this relay"
	case controlv1.Reason_REASON_BLOCKED:
		return "an administrator has blocked this relay"
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated:
		return "the broker does not accept this relay's certificate"
	case connect.CodePermissionDenied:
		return "the broker has blocked or removed this relay"
	}
	if err == nil {
		return "the broker closed the stream"
	}
	return err.Error()
}

func reconnectIn(r *controlv1.Reconnect) time.Duration {
	limit := maxReconnect.Milliseconds()
	after := time.Duration(min(max(r.AfterMs, 0), limit)) * time.Millisecond
	return after + rand.N(time.Duration(min(max(r.SpreadMs, 1), limit))*time.Millisecond) + time.Millisecond
}

// spread varies d by 20 %, so that a fleet does not act at once (decisions rule 32).
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
