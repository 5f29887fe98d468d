package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/client/state"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

type statusCmd struct{ common }

// statusWait lets a client that lives for this command hear the broker once.
const statusWait = 5 * time.Second

// Run shows how the client stands.
func (statusCmd) Run(ctx context.Context, a *app) error {
	proxied := a.proxyAddress(ctx) // before this command serves the socket itself
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, daemon bool) error {
		if !daemon {
			waited, cancel := context.WithTimeout(ctx, statusWait)
			_, _ = c.Apps(waited, connect.NewRequest(&localv1.AppsRequest{})) // only waits
			cancel()
		}
		st, err := c.Status(ctx, connect.NewRequest(&localv1.StatusRequest{}))
		if err != nil {
			return err
		}
		return a.print(st.Msg, func() { a.showStatus(st.Msg, daemon, proxied) })
	})
}

func (a *app) showStatus(s *localv1.StatusResponse, daemon bool, proxied string) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	defer w.Flush()
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	row("state", s.State)
	broker, _, _ := strings.Cut(s.Broker, "/#")
	row("broker", broker)
	row("user", s.User)
	row("device", s.DeviceId)
	if s.SessionExpiresMs > 0 {
		row("session until", time.UnixMilli(s.SessionExpiresMs).Format(time.DateTime))
	}
	row("interface", strings.TrimSpace(s.Interface+" "+s.Ipv4Prefix+" "+s.Ipv6Prefix))
	row("dns", s.Dns)
	if !daemon {
		row("daemon", "does not run")
		row("proxy", proxyLine(s.State, proxied))
	}
	for _, l := range s.Links {
		row("link", fmt.Sprintf("%s %s %s %.1f ms, %d flows, %d B in, %d B out%s", l.ConnectorId, l.Carrier, l.Path,
			float64(l.RttUs)/1000, l.Flows, l.BytesIn, l.BytesOut, standby(l.Standby)))
	}
	for _, f := range s.Facts {
		row("fact", f.Name+" "+f.State+" "+f.Evidence)
	}
	for _, p := range s.Problems {
		row("problem", p)
	}
}

// proxyLine says where this person's proxy serves, or how to start it.
func proxyLine(state, proxied string) string {
	switch {
	case proxied != "":
		return "serves the apps on " + proxied
	case state == "signed_out":
		return "does not run; run: postern proxy URL"
	default:
		return "does not run; run: postern proxy"
	}
}

func standby(s string) string {
	if s == "" {
		return ""
	}
	return ", standby " + s
}

type appsCmd struct{ common }

// Run lists the apps.
func (appsCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, _ bool) error {
		apps, err := c.Apps(ctx, connect.NewRequest(&localv1.AppsRequest{}))
		if err != nil {
			return err
		}
		return a.print(apps.Msg, func() { a.listApps(apps.Msg.Apps) })
	})
}

func (a *app) listApps(apps []*localv1.App) {
	if len(apps) == 0 {
		fmt.Fprintln(a.out, "No apps are published for you.")
		return
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	defer w.Flush()
	for _, v := range apps {
		mark := "yes"
		if !v.Allowed {
			mark = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Name, v.Fqdn, strings.Join(v.Ports, " "), mark, v.Hint)
	}
}

type whyCmd struct {
	common

	Query string `arg:"" optional:"" help:"App name or receipt; the latest refusal if omitted."`
}

// Run explains.
func (q whyCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, _ bool) error {
		why, err := c.Why(ctx, connect.NewRequest(&localv1.WhyRequest{Query: q.Query}))
		if err != nil {
			return err
		}
		return a.print(why.Msg, func() {
			fmt.Fprintln(a.out, why.Msg.Text)
			if why.Msg.Receipt != "" {
				fmt.Fprintln(a.out, "Receipt: "+why.Msg.Receipt)
			}
		})
	})
}

type pingCmd struct {
	common

	App string `arg:"" help:"The app to measure."`
}

// Run measures.
func (p pingCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(ctx context.Context, c *localapi.Client, _ bool) error {
		r, err := c.Ping(ctx, connect.NewRequest(&localv1.PingRequest{App: p.App}))
		if err != nil {
			return err
		}
		if err := a.print(r.Msg, func() { a.showLegs(r.Msg.Legs) }); err != nil {
			return err
		}
		for _, leg := range r.Msg.Legs {
			if leg.Error != "" {
				return fmt.Errorf("%s: %s", leg.Name, leg.Error)
			}
		}
		return nil
	})
}

func (a *app) showLegs(legs []*localv1.Leg) {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	defer w.Flush()
	for _, leg := range legs {
		value := fmt.Sprintf("%.1f ms", float64(leg.RttUs)/1000)
		if leg.Error != "" {
			value = leg.Error
		}
		fmt.Fprintf(w, "%s\t%s\n", leg.Name, value)
	}
}

// forget removes this person's own device.
func (a *app) forget() error {
	own, err := a.own()
	if err != nil {
		return err
	}
	store, err := state.Open(own.Paths.State)
	if err != nil {
		return err
	}
	return store.Forget()
}
