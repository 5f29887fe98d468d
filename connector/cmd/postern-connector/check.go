package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"

	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/connector/check"
	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/connector/statusapi"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/platform/daemon"
)

// checkCmd finds the first thing that keeps this machine from serving.
type checkCmd struct {
	Join string `help:"URL of the broker with its pin: check before the join." placeholder:"URL"`
	JSON bool   `help:"One JSON object per step."`
}

// Help shows an example.
func (checkCmd) Help() string {
	return "Stops at the first failure, with one fix and exit code 1. Example:\n" +
		"  postern-connector check --join https://broker.example:8443/#pin=..."
}

// errCheck says that a step has failed, which has been printed.
var errCheck = errors.New("this machine cannot serve yet")

// Run goes through the steps.
func (k *checkCmd) Run(e *env) error {
	cfg, err := k.config(e)
	if err != nil {
		return err
	}
	if got, err := daemon.RaiseFileLimit(wantedFiles); err == nil {
		cfg.Files = got
	}
	if !check.Run(e.ctx, cfg, func(r check.Result) { k.tell(e, r) }) {
		return &exitError{code: 1, err: errCheck}
	}
	return nil
}

func (k *checkCmd) tell(e *env, r check.Result) {
	if k.JSON {
		_ = json.NewEncoder(e.out).Encode(r) // nobody to tell when the output is gone
		return
	}
	fmt.Fprintf(e.out, "%-4s  %-12s  %s\n", r.State, r.Step, r.Text)
	if r.Fix != "" {
		fmt.Fprintf(e.out, "      Fix: %s\n", r.Fix)
	}
}

// config takes the membership where there is one, else the URL.
func (k *checkCmd) config(e *env) (check.Config, error) {
	m, store, err := membershipOf(e)
	switch {
	case err == nil:
		return k.joined(e, store, m)
	case !errors.Is(err, enroll.ErrNotJoined):
		return check.Config{}, err
	case k.Join == "":
		return check.Config{}, fmt.Errorf("%w; give --join URL", err)
	}
	broker, err := control.ParseURL(k.Join)
	if err != nil {
		return check.Config{}, err
	}
	return withProxy(check.Config{Broker: broker, Dialer: e.proxy}), nil
}

// membershipOf reads the state directory without making anything in it.
func membershipOf(e *env) (enroll.Membership, *enroll.Store, error) {
	if !enroll.Joined(e.dir) {
		return enroll.Membership{}, nil, enroll.ErrNotJoined
	}
	store, err := enroll.Open(e.dir)
	if err != nil {
		return enroll.Membership{}, nil, err
	}
	m, err := store.Load()
	return m, store, err
}

func (k *checkCmd) joined(e *env, store *enroll.Store, m enroll.Membership) (check.Config, error) {
	if err := (&runCmd{Join: k.Join}).already(m); err != nil {
		return check.Config{}, err
	}
	broker, err := m.Broker()
	if err != nil {
		return check.Config{}, err
	}
	member, err := control.NewMember(store.Key(), m.Chain, nil)
	if err != nil {
		return check.Config{}, err
	}
	cfg := check.Config{Broker: broker, Dialer: e.proxy, Member: member, Connector: m.Connector}
	cfg.Site = func(ctx context.Context) (check.Site, error) { return siteOf(ctx, e, cfg, store, m) }
	return withProxy(cfg), nil
}

// siteOf asks the connector that runs here; without one the check listens itself, for two
// of one name would take the stream from each other.
func siteOf(ctx context.Context, e *env, cfg check.Config, store *enroll.Store, m enroll.Membership) (check.Site, error) {
	st, err := statusapi.Fetch(ctx, e.socket)
	if err == nil {
		return siteOfStatus(st)
	}
	if !errors.Is(err, statusapi.ErrNotRunning) {
		return check.Site{}, err
	}
	ca, err := control.ParseCA(m.CA, cfg.Broker.Pin)
	if err != nil {
		return check.Site{}, err
	}
	credentials, err := peer.NewCredentials(peer.CredentialsConfig{Identity: store.Key()})
	if err != nil {
		return check.Site{}, err
	}
	hc := control.NewClient(control.ClientConfig{Broker: cfg.Broker, Certificate: cfg.Member.Certificate, Dialer: cfg.Dialer})
	defer hc.CloseIdleConnections()
	return check.Listener{
		HTTP: hc, Broker: cfg.Broker, CA: ca, Self: m.Connector, Credentials: credentials, Dialer: cfg.Dialer, Version: version,
	}.Site(ctx)
}

func siteOfStatus(st statusapi.Status) (check.Site, error) {
	if !st.Uplink.Connected {
		return check.Site{}, errors.New("the connector that runs here has no control stream: " + st.Uplink.Problem)
	}
	var s check.Site
	for _, r := range st.Relays {
		s.Relays = append(s.Relays, check.Relay{ID: r.ID, Transport: r.Transport, Up: r.Up, Problem: r.Problem})
	}
	for _, a := range st.Apps {
		for _, t := range a.Targets {
			s.Targets = append(s.Targets, check.Target{App: a.Name, Network: t.Network, Address: t.Address})
		}
	}
	return s, nil
}

// withProxy names the proxy that the environment sets for the broker.
func withProxy(cfg check.Config) check.Config {
	proxy, err := httpproxy.FromEnvironment().ProxyFunc()(&url.URL{Scheme: "https", Host: cfg.Broker.Address})
	if err == nil && proxy != nil && cfg.Dialer != nil {
		cfg.Proxy = proxy.Host
	}
	return cfg
}
