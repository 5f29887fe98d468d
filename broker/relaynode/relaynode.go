// Package relaynode is a relay that runs as its own process: its membership at a broker,
// its one TCP and one UDP port, and its control stream. `postern-broker relay` and the
// scenarios use it. What it forwards and how is netstack/relay; this package decides
// nothing about tickets and sees no byte of a link.
//
// A Node serves on while the broker is away, also over a restart of its own: the signing
// keys that it heard last are kept beside its identity. What it cannot hear then are cuts;
// connectors end what was revoked by themselves (decisions rules 9 and 14).
//
// New opens ports and starts nothing; Run owns every goroutine. Addr and State are safe
// for concurrent use.
package relaynode

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/seal"
)

// DefaultListen is where a relay listens when it was told nothing: beside a broker on 8443.
const DefaultListen = ":8444"

// Config is what a Node needs; it must have joined (Store.Join).
type Config struct {
	Store *Store
	// Listen is the address of the one TCP and the one UDP port; empty is DefaultListen.
	Listen  string
	Version string
	// Dialer opens the connection to the broker: a proxy dialer where HTTPS_PROXY says so.
	// Nil means direct connections.
	Dialer control.Dialer
	// Limits of the relay; zero fields take the defaults.
	Limits relay.Limits
	Log    *slog.Logger
}

// Node is one relay process whose ports are bound.
type Node struct {
	cfg    Config
	log    *slog.Logger
	joined Membership
	member *control.Member
	ca     *x509.Certificate
	http   *http.Client
	client controlv1connect.RelayServiceClient
	renew  controlv1connect.EnrollServiceClient
	relay  *relay.Relay
	tcp    net.Listener
	udp    *net.UDPConn

	// keys is read for every ticket and replaced by the control stream.
	keys  atomic.Pointer[seal.Keys]
	state atomic.Pointer[State]
	// cuts belongs to the control stream.
	cuts cutMemory
}

// New reads membership and keys and binds the ports. Close undoes it when Run is never
// called.
func New(ctx context.Context, cfg Config) (*Node, error) {
	joined, err := cfg.Store.Load()
	if err != nil {
		return nil, err
	}
	if cfg.Listen == "" {
		cfg.Listen = DefaultListen
	}
	n := &Node{cfg: cfg, log: cfg.Log.With("component", "relay", "relay", joined.Relay), joined: joined}
	n.keys.Store(&seal.Keys{})
	n.state.Store(&State{Since: time.Now(), Problem: "not connected yet"})
	for _, step := range []func(context.Context) error{n.openControl, n.openRelay, n.openPorts} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

func (n *Node) openControl(context.Context) error {
	broker, err := n.joined.Broker()
	if err != nil {
		return err
	}
	if n.ca, err = control.ParseCA(n.joined.CA, broker.Pin); err != nil {
		return err
	}
	if n.member, err = control.NewMember(n.cfg.Store.Key(), n.joined.Chain, nil); err != nil {
		return err
	}
	n.http = control.NewClient(control.ClientConfig{Broker: broker, Certificate: n.member.Certificate, Dialer: n.cfg.Dialer})
	n.client = controlv1connect.NewRelayServiceClient(n.http, broker.BaseURL())
	n.renew = controlv1connect.NewEnrollServiceClient(n.http, broker.BaseURL())
	return nil
}

func (n *Node) openRelay(ctx context.Context) error {
	key, err := n.cfg.Store.TicketKey()
	if err != nil {
		return err
	}
	certs, err := n.cfg.Store.LoadKeys()
	if err != nil {
		n.log.WarnContext(ctx, "signing keys of the last run not readable", "error", err)
	}
	n.setKeys(ctx, certs)
	n.relay, err = relay.New(relay.Config{
		ID: n.joined.Relay, Key: key, Limits: n.cfg.Limits, Log: n.cfg.Log,
		BrokerKeys: func() seal.Keys { return *n.keys.Load() },
	})
	return err
}

// openPorts binds TCP and UDP on one port number.
func (n *Node) openPorts(ctx context.Context) (err error) {
	var lc net.ListenConfig
	if n.tcp, err = lc.Listen(ctx, "tcp", n.cfg.Listen); err != nil {
		return fmt.Errorf("%w: is another relay or broker on this port? Choose another with --listen", err)
	}
	addr := n.tcp.Addr().(*net.TCPAddr)
	n.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port, Zone: addr.Zone})
	return err
}

// Addr is the address of both ports.
func (n *Node) Addr() *net.TCPAddr { return n.tcp.Addr().(*net.TCPAddr) }

// Run relays until ctx ends. The broker's absence ends nothing.
func (n *Node) Run(ctx context.Context) error {
	conf := relay.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.member.Certificate() })
	n.log.InfoContext(ctx, "relay runs", "listen", n.Addr().String())
	err := daemon.Run(ctx, n.log,
		daemon.Part{Name: "tcp", Run: func(ctx context.Context) error { return n.relay.ServeTCP(ctx, n.tcp, conf) }},
		daemon.Part{Name: "udp", Run: func(ctx context.Context) error { return n.relay.ServeUDP(ctx, n.udp) }},
		daemon.Part{Name: "control stream", Run: n.watch},
		daemon.Part{Name: "report", Run: n.report},
		daemon.Part{Name: "certificate", Run: n.keepCertificate},
	)
	return errors.Join(err, n.Close())
}

// Close releases the ports. Safe twice.
func (n *Node) Close() error {
	var errs []error
	if n.tcp != nil {
		errs = append(errs, ignoreClosed(n.tcp.Close()))
	}
	if n.udp != nil {
		errs = append(errs, ignoreClosed(n.udp.Close()))
	}
	if n.http != nil {
		n.http.CloseIdleConnections()
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
