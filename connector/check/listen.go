package check

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/serve"
	"github.com/postern-zt/postern/connector/targets"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/peer"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// attachTime is how long the relays have to answer.
const attachTime = 6 * time.Second

// maxPush bounds one push of the broker.
const maxPush = 8 << 20

// Listener hears what the broker wants of a connector that does not run: it opens the
// control stream for a moment, and attaches to the relays with its tickets. Devices that
// call meanwhile are turned away.
type Listener struct {
	HTTP        *http.Client
	Broker      control.Broker
	CA          *x509.Certificate
	Self        ids.ConnectorID
	Credentials *peer.Credentials
	Dialer      control.Dialer
	Version     string
}

// heard is what the stream has brought.
type heard struct {
	keys       seal.Keys
	envelope   []byte
	relays     []*controlv1.RelayPath
	haveRelays bool
}

// Site listens until assignment and relays are known, then tries the relays.
func (l Listener) Site(ctx context.Context) (Site, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := controlv1connect.NewConnectorServiceClient(l.HTTP, l.Broker.BaseURL(), connect.WithReadMaxBytes(maxPush))
	stream, err := client.Watch(ctx, connect.NewRequest(&controlv1.WatchRequest{Version: l.Version}))
	if err != nil {
		return Site{}, err
	}
	defer stream.Close()
	var h heard
	for (h.envelope == nil || !h.haveRelays) && stream.Receive() {
		l.take(&h, stream.Msg())
	}
	if err := stream.Err(); err != nil {
		return Site{}, err
	}
	if h.envelope == nil || !h.haveRelays {
		return Site{}, errors.New("the broker closed the stream")
	}
	a, err := grant.OpenAssignment(h.keys, h.envelope)
	if err != nil {
		return Site{}, err
	}
	if a.Connector != l.Self {
		return Site{}, errors.New("the broker sent the assignment of another connector")
	}
	relays, err := l.tryRelays(ctx, h.relays)
	return Site{Relays: relays, Targets: Targets(a.Apps)}, err
}

func (l Listener) take(h *heard, msg *controlv1.ConnectorPush) {
	switch n := msg.News.(type) {
	case *controlv1.ConnectorPush_Keys:
		var pubs []ed25519.PublicKey
		for _, der := range n.Keys.GetCertificatesDer() {
			if pub, err := control.SignerKey(der, l.CA, time.Now()); err == nil { // others certify nothing
				pubs = append(pubs, pub)
			}
		}
		h.keys = seal.NewKeys(pubs...)
	case *controlv1.ConnectorPush_Assignment:
		h.envelope = n.Assignment
	case *controlv1.ConnectorPush_Relays:
		h.relays, h.haveRelays = n.Relays.GetRelays(), true
	}
}

// Targets lists the first address of each target of the apps.
func Targets(apps []grant.App) []Target {
	var out []Target
	for _, a := range apps {
		name := a.Name
		if name == "" {
			name = string(a.ID)
		}
		for _, t := range a.Targets {
			out = append(out, Target{App: name, Network: t.Ports.Network.String(), Address: targets.Address(t)})
		}
	}
	return out
}

// refuse turns away whoever calls while a check runs.
type refuse struct{}

func (refuse) Serve(_ context.Context, c carrier.Carrier) error { return c.Close() }

// tryRelays attaches for real, and says what stands when all do or the time is over.
func (l Listener) tryRelays(ctx context.Context, paths []*controlv1.RelayPath) ([]Relay, error) {
	cfg := serve.Config{Credentials: l.Credentials, Links: refuse{}, Broker: l.Broker, Log: slog.New(slog.DiscardHandler)}
	if l.Dialer != nil {
		cfg.Dialer = l.Dialer
	}
	s, err := serve.New(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { err = s.Run(ctx) })
	s.SetRelays(paths)
	states := settle(ctx, s, 2*len(paths))
	cancel()
	wg.Wait()
	var out []Relay
	for _, st := range states {
		out = append(out, Relay{ID: string(st.Relay), Transport: st.Transport, Up: st.Up, Problem: st.Problem})
	}
	return out, err
}

// settle waits until all transports stand or the time is over.
func settle(ctx context.Context, s *serve.Server, want int) []serve.State {
	const look = 20 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		states, up := s.States(), 0
		for _, st := range states {
			if st.Up {
				up++
			}
		}
		if up >= want {
			return states
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return states
		}
	}
}
