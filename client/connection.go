package client

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/posture"
	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/client/uplink"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/platform/daemon"
	platformposture "github.com/postern-zt/postern/platform/posture"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

// callTimeout bounds a short call to the broker.
const callTimeout = 15 * time.Second

// connection is everything that lives under one membership.
type connection struct {
	client     *Client
	membership state.Membership
	broker     control.Broker
	member     *control.Member
	http       *http.Client
	device     controlv1connect.DeviceServiceClient
	uplink     *uplink.Uplink
	witness    *control.Witness
	tunnels    *tunnels.Tunnels
	reporter   *posture.Reporter
	// reported wakes whoever waits for a report to have arrived; its length 1 lets the
	// others go on without.
	reported chan struct{}
}

func (c *Client) connect(m state.Membership) (*connection, error) {
	broker, err := m.Broker()
	if err != nil {
		return nil, err
	}
	member, err := control.NewMember(c.store.Key(), m.Chain, nil)
	if err != nil {
		return nil, err
	}
	x := &connection{client: c, membership: m, broker: broker, member: member, reported: make(chan struct{}, 1)}
	x.http = control.NewClient(control.ClientConfig{Broker: broker, Certificate: member.Certificate, Dialer: c.cfg.Dialer})
	x.device = controlv1connect.NewDeviceServiceClient(x.http, broker.BaseURL())
	x.witness = control.NewWitness(c.store.LoadAudit, c.store.SaveAudit, c.log)
	x.uplink = uplink.New(uplink.Config{
		Client: watcher{x}, Version: c.cfg.Version, Sink: sink{x}, Witness: x.witness, Log: c.cfg.Log,
	})
	credentials, err := peer.NewCredentials(peer.CredentialsConfig{Identity: member.Key(), Now: x.uplink.Now})
	if err != nil {
		return nil, err
	}
	x.tunnels, err = tunnels.New(tunnels.Config{
		Client: x.device, Broker: broker, Credentials: credentials, CheckConnector: c.store.CheckConnector,
		Dialer: c.cfg.Dialer, TLSOnly: c.cfg.TLSOnly, Now: x.uplink.Now, OnDenied: c.denied, Log: c.cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	collector := platformposture.New(platformposture.Config{OwnInterface: c.cfg.Interface})
	x.reporter = posture.New(posture.Config{Collect: collector.Collect, Send: x.report, Version: c.cfg.Version, Log: c.cfg.Log})
	return x, nil
}

func (x *connection) run(ctx context.Context) error {
	defer x.http.CloseIdleConnections()
	return daemon.Run(ctx, x.client.cfg.Log,
		daemon.Part{Name: "uplink", Run: x.uplink.Run},
		daemon.Part{Name: "tunnels", Run: x.tunnels.Run},
		daemon.Part{Name: "posture", Run: x.reporter.Run},
		daemon.Part{Name: "renewal", Run: x.keepRenewed},
	)
}

// keepRenewed renews the device certificate and stores each new one.
func (x *connection) keepRenewed(ctx context.Context) error {
	enroll := controlv1connect.NewEnrollServiceClient(x.http, x.broker.BaseURL())
	renew := func(ctx context.Context, csr []byte) ([][]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		resp, err := enroll.Renew(ctx, connect.NewRequest(&controlv1.RenewRequest{CsrDer: csr}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.ChainDer, nil
	}
	return x.member.KeepRenewed(ctx, renew, func(chain [][]byte) error {
		m := x.membership
		m.Chain = chain
		x.http.CloseIdleConnections()
		return x.client.store.Save(m)
	})
}

// report sends facts to the broker.
func (x *connection) report(ctx context.Context, r posture.Report) error {
	req := &controlv1.ReportRequest{ClientVersion: r.ClientVersion, Sequence: r.Sequence}
	for _, f := range r.Facts {
		req.Facts = append(req.Facts, &controlv1.Fact{
			Name: f.Name, State: f.State.String(), Data: f.Data, ObservedMs: f.Observed.UnixMilli(),
			TtlS: int64(r.TTL / time.Second), Source: "client", Evidence: f.Evidence,
		})
	}
	_, err := x.device.Report(ctx, connect.NewRequest(req))
	if err == nil {
		select {
		case x.reported <- struct{}{}:
		default:
		}
	}
	return err
}

// factsFirst is how long the stream waits for a report to arrive.
const factsFirst = 3 * time.Second

// watcher reports the facts before it opens the stream: the catalog that comes first is
// then the one of this device as it is now, not of one whose facts have expired.
type watcher struct{ *connection }

// Watch opens the stream.
func (w watcher) Watch(ctx context.Context, req *connect.Request[controlv1.WatchRequest]) (*connect.ServerStreamForClient[controlv1.DevicePush], error) {
	select {
	case <-w.reported: // an old one
	default:
	}
	w.reporter.Trigger()
	timer := time.NewTimer(factsFirst)
	defer timer.Stop()
	select {
	case <-w.reported:
	case <-timer.C:
	case <-ctx.Done():
	}
	return w.device.Watch(ctx, req)
}

// sink hands what the broker pushes to the parts.
type sink struct{ *connection }

var _ uplink.Sink = sink{}

// Connected has nothing to do: the facts were reported before the stream opened.
func (sink) Connected() {}

func (s sink) Catalog(cat *controlv1.Catalog) { s.client.update(func(v *view) { v.catalog = cat }) }

func (s sink) Session(n *controlv1.SessionNews) {
	if n.GetState() != "live" {
		s.tunnels.EndAll()
	}
	s.client.update(func(v *view) { v.session, v.heard = n, true })
}

func (s sink) Ended(e *controlv1.GrantsEnded) { s.tunnels.Ended(e.GetGrantIds(), e.GetReceipt()) }

func (s sink) ForgetDenials() { s.tunnels.ForgetDenials() }
