package client

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/paths"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// AgentConfig describes a client that one person runs without the daemon: a device of its
// own, with a software key (decisions rule 21).
type AgentConfig struct {
	Paths   paths.Set
	Version string
	// Proxy is the HTTP proxy of the environment; nil means none.
	Proxy *httpproxy.Config
	// OnDenied is told each new refusal; nil is nobody.
	OnDenied func(app string, r *controlv1.Receipt)
	Log      *slog.Logger
}

// RunAgent runs a client with its local socket for as long as use takes. The error is
// ipc.ErrInUse when another process of this person does so already; talk to its socket
// then: two processes with one device key would end each other's flows.
func RunAgent(ctx context.Context, cfg AgentConfig, use func(ctx context.Context, c *Client) error) error {
	if err := paths.PrivateDir(cfg.Paths.Runtime); err != nil {
		return err
	}
	l, err := ipc.Listen(ctx, cfg.Paths.Socket, 0o600)
	if err != nil {
		return err
	}
	defer l.Close()
	dialer, tlsOnly := Dialing(cfg.Proxy)
	c, err := New(Config{
		Dir: cfg.Paths.State, Version: cfg.Version, Dialer: dialer, TLSOnly: tlsOnly, OnDenied: cfg.OnDenied, Log: cfg.Log,
	})
	if err != nil {
		return err
	}
	api := localapi.New(localapi.Config{Listener: l, Backend: Backend{c}, Gate: localapi.OwnerOnly(uint32(os.Getuid())), Log: cfg.Log})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return daemon.Run(ctx, cfg.Log,
		daemon.Part{Name: "client", Run: c.Run},
		daemon.Part{Name: "local socket", Run: api.Run},
		daemon.Part{Name: "command", Run: func(ctx context.Context) error {
			defer cancel()
			return use(ctx, c)
		}},
	)
}

// Dialing returns the dialer for an HTTP proxy of the environment and whether QUIC is out:
// nobody configures a proxy where UDP passes. Without a proxy both are zero.
func Dialing(p *httpproxy.Config) (control.Dialer, bool) {
	if p == nil || p.HTTPSProxy == "" {
		return nil, false
	}
	return attach.NewProxyDialer(p, nil, nil), true
}

// String leaves the proxy out: its URL may hold a password.
func (c AgentConfig) String() string { return fmt.Sprintf("agent in %s", c.Paths.State) }
