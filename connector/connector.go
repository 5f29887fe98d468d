// Package connector wires one connector: membership, guard, links, relays, flow records,
// control stream. It holds no logic of its own. cmd/postern-connector runs it; scenarios
// run it in process.
package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enforce"
	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/connector/health"
	"github.com/postern-zt/postern/connector/serve"
	"github.com/postern-zt/postern/connector/targets"
	"github.com/postern-zt/postern/connector/uplink"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/platform/daemon"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

// drainTime is how long flows may go on after the first stop signal.
const drainTime = 30 * time.Second

// Config is what a connector needs; it must have joined (connector/enroll).
type Config struct {
	Store   *enroll.Store
	Version string
	// Dialer opens connections to broker and relays: a proxy dialer where HTTPS_PROXY says so.
	Dialer control.Dialer
	// Socket is the local socket that answers `postern-connector status`; empty is none.
	Socket string
	// Drain is how long flows may go on after a stop; zero means 30 s.
	Drain time.Duration
	// Now reads both clocks; nil is clock.Now.
	Now func() clock.Time
	Log *slog.Logger
}

// wall is the time of day.
func (c Config) wall() time.Time { return c.Now().Wall }

// Connector is one connector whose parts are built.
type Connector struct {
	cfg      Config
	log      *slog.Logger
	member   *control.Member
	joined   enroll.Membership
	broker   control.Broker
	http     *http.Client
	flows    *flowlog.Log
	enforcer *enforce.Enforcer
	watch    *health.Watch
	links    *link.Server
	serve    *serve.Server
	uplink   *uplink.Uplink
	witness  *control.Witness
	started  time.Time
}

// New reads the membership and builds the parts; it starts nothing.
func New(cfg Config) (*Connector, error) {
	joined, err := cfg.Store.Load()
	if err != nil {
		return nil, err
	}
	if cfg.Drain == 0 {
		cfg.Drain = drainTime
	}
	if cfg.Now == nil {
		cfg.Now = clock.Now
	}
	c := &Connector{cfg: cfg, log: cfg.Log, joined: joined, watch: health.New(cfg.wall), started: time.Now()}
	for _, step := range []func() error{c.openControl, c.openEnforcer, c.openLinks} {
		if err := step(); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

func (c *Connector) openControl() (err error) {
	if c.broker, err = c.joined.Broker(); err != nil {
		return err
	}
	if c.member, err = control.NewMember(c.cfg.Store.Key(), c.joined.Chain, c.cfg.wall); err != nil {
		return err
	}
	c.http = control.NewClient(control.ClientConfig{
		Broker: c.broker, Certificate: c.member.Certificate, Dialer: c.cfg.Dialer, Now: c.cfg.wall,
	})
	return nil
}

func (c *Connector) openEnforcer() (err error) {
	mark, err := c.cfg.Store.LoadMark()
	if err != nil {
		return err
	}
	if c.flows, err = flowlog.Open(c.cfg.Store.Flows(), c.joined.Connector, c.cfg.Store.Key(), c.cfg.wall); err != nil {
		return fmt.Errorf("flow records: %w", err)
	}
	c.enforcer = enforce.New(enforce.Config{
		Self: c.joined.Connector, Mark: mark, SaveMark: c.cfg.Store.SaveMark, Dialer: &targets.Dialer{},
		Recorder: c.flows, Health: c.watch, Now: c.cfg.Now, Log: c.log,
	})
	return nil
}

func (c *Connector) openLinks() (err error) {
	credentials, err := peer.NewCredentials(peer.CredentialsConfig{Identity: c.cfg.Store.Key(), Now: c.cfg.wall})
	if err != nil {
		return err
	}
	if c.links, err = link.NewServer(link.ServerConfig{Handler: c.enforcer, Memory: flow.NewMemory(flow.DefaultMemory), Log: c.log}); err != nil {
		return err
	}
	c.enforcer.SetLinks(links{c.links})
	scfg := serve.Config{Credentials: credentials, Links: c.links, Broker: c.broker, Log: c.log}
	if c.cfg.Dialer != nil {
		scfg.Dialer = c.cfg.Dialer
	}
	if c.serve, err = serve.New(scfg); err != nil {
		return err
	}
	ca, err := control.ParseCA(c.joined.CA, c.broker.Pin)
	if err != nil {
		return err
	}
	c.witness = control.NewWitness(c.cfg.Store.LoadAudit, c.cfg.Store.SaveAudit, c.log)
	c.uplink = uplink.New(uplink.Config{
		HTTP: c.http, Broker: c.broker, CA: ca, Version: c.cfg.Version, Sink: sink{c.enforcer, c.serve}, Now: c.cfg.wall,
		Witness: c.witness, Log: c.log,
	})
	return nil
}

// links narrows the link server to what the enforcer does with it.
type links struct{ s *link.Server }

func (l links) CloseGrant(id ids.GrantID, code frame.Code) { l.s.CloseGrant(id, code) }
func (l links) Hold(id ids.GrantID)                        { l.s.Hold(id) }
func (l links) Resume(id ids.GrantID)                      { l.s.Resume(id) }

// sink joins enforcer and relays for the uplink.
type sink struct {
	*enforce.Enforcer
	serve *serve.Server
}

func (s sink) Relays(paths []*controlv1.RelayPath) { s.serve.SetRelays(paths) }

// Run serves until ctx ends; then flows may go on for the drain time.
func (c *Connector) Run(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	still := func(run func(context.Context) error) func(context.Context) error {
		return func(context.Context) error { return run(serving) }
	}
	err := daemon.Run(ctx, c.log,
		daemon.Part{Name: "uplink", Run: still(c.uplink.Run)},
		daemon.Part{Name: "serve", Run: still(c.serve.Run)},
		daemon.Part{Name: "enforce", Run: still(c.enforcer.Run)},
		daemon.Part{Name: "refused flows", Run: still(c.enforcer.RunRefusals)},
		daemon.Part{Name: "flow records", Run: still(c.shipFlows)},
		daemon.Part{Name: "certificate", Run: c.keepCertificate},
		daemon.Part{Name: "health", Run: c.reportHealth},
		daemon.Part{Name: "status", Run: c.serveStatus},
		daemon.Part{Name: "drain", Run: func(ctx context.Context) error { return c.drain(ctx, stop) }},
	)
	return errors.Join(err, c.close())
}

// drain lets open flows end, then stops what serves them. One that was removed cuts them.
func (c *Connector) drain(ctx context.Context, stop func()) error {
	<-ctx.Done()
	defer stop()
	c.links.Drain()
	if errors.Is(context.Cause(ctx), uplink.ErrRemoved) {
		return c.links.Close()
	}
	if n := c.links.Flows(); n > 0 {
		c.log.Info("draining", "flows", n)
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Drain)
	defer cancel()
	if err := c.links.WaitFlows(wait); err != nil {
		c.log.Warn("flows cut at the end of the drain time", "flows", c.links.Flows())
	}
	return c.links.Close()
}

func (c *Connector) shipFlows(ctx context.Context) error {
	return c.flows.Run(ctx, uplink.Shipper(c.uplink.Client()), c.log)
}

func (c *Connector) keepCertificate(ctx context.Context) error {
	return c.member.KeepRenewed(ctx, enroll.Renew(c.http, c.broker), func(chain [][]byte) error {
		c.joined.Chain = chain
		c.http.CloseIdleConnections()
		return c.cfg.Store.Save(c.joined)
	})
}

func (c *Connector) reportHealth(ctx context.Context) error {
	return health.Run(ctx, c.Report, func(ctx context.Context, r *controlv1.HealthRequest) error {
		_, err := c.uplink.Client().Health(ctx, connect.NewRequest(r))
		return err
	}, c.log)
}

// Uplink is how the control stream stands.
func (c *Connector) Uplink() uplink.State { return c.uplink.State() }

// Live reports whether a fresh word of the broker covers this moment: flows may open.
func (c *Connector) Live() bool { return c.enforcer.State().Live }

// Report is the connector's health in three layers.
func (c *Connector) Report() *controlv1.HealthRequest {
	state := c.enforcer.State()
	r := &controlv1.HealthRequest{
		Version: c.cfg.Version, ClockOffsetMs: c.uplink.State().Offset.Milliseconds(),
		Apps: c.watch.Apps(state.Apps), Flows: uint32(max(0, c.links.Flows())), Links: uint32(max(0, state.Grants)),
	}
	for _, st := range c.serve.States() {
		p := &controlv1.PathHealth{RelayId: string(st.Relay), Transport: st.Transport, State: "up", Error: st.Problem}
		if !st.Up {
			p.State = "down"
		}
		r.Paths = append(r.Paths, p)
	}
	return r
}

func (c *Connector) close() error {
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	if c.flows == nil {
		return nil
	}
	return c.flows.Close()
}
