package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/link"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

// maxFailures bounds the names whose last failure is kept; the oldest goes.
const maxFailures = 64

// failures keeps the last failed connection of each name, for `postern why`. It is safe for
// concurrent use; the zero value is empty.
type failures struct {
	mu   sync.Mutex // guards list
	list []failure  // oldest first
}

// failure is one connection that did not come about.
type failure struct {
	app string
	at  time.Time
	err error
}

// note keeps a failure; what ended because the caller or the client ended says nothing.
func (f *failures) note(app string, err error, now time.Time) {
	if errors.Is(err, context.Canceled) || errors.Is(err, tunnels.ErrClosed) || errors.Is(err, link.ErrClosed) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = slices.DeleteFunc(f.list, func(old failure) bool { return old.app == app })
	if len(f.list) >= maxFailures {
		f.list = slices.Delete(f.list, 0, 1)
	}
	f.list = append(f.list, failure{app: app, at: now, err: err})
}

func (f *failures) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// newest is the latest of an app, or of all when app is empty.
func (f *failures) newest(app string) (failure, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range slices.Backward(f.list) {
		if app == "" || one.app == app {
			return one, true
		}
	}
	return failure{}, false
}

// failed notes why an app was not opened, and says which ports it has instead of the one
// that it does not have.
func (c *Client) failed(host, network string, port uint16, err error) error {
	if err == nil {
		return nil
	}
	name := host
	if app, ok := c.Find(host); ok {
		name = app.Name
		if frame.CodeOf(err) == frame.PortNotGranted {
			err = &PortError{App: name, Asked: portText(network, uint32(port), uint32(port)), Has: portsOf(app), Err: err}
		}
	}
	c.failures.note(name, err, time.Now())
	return err
}

// PortError is a port that an app does not have.
type PortError struct {
	App, Asked string
	Has        []string
	Err        error
}

// Error names the ports that there are.
func (e *PortError) Error() string {
	return fmt.Sprintf("%s has no port %s (it has %s).", e.App, e.Asked, strings.Join(e.Has, ", "))
}

// Unwrap returns the connector's refusal.
func (e *PortError) Unwrap() error { return e.Err }

func portsOf(app *controlv1.CatalogApp) []string {
	var out []string
	for _, p := range app.GetPorts() {
		out = append(out, portText(p.Network, p.First, p.Last))
	}
	return out
}

// portText is a range as people say it: TCP is not mentioned.
func portText(network string, first, last uint32) string {
	text := fmt.Sprint(first)
	if last != first {
		text += fmt.Sprintf("-%d", last)
	}
	if network != "tcp" {
		text = network + "/" + text
	}
	return text
}

// explain says a failure to the person who had it; denials are explained by the broker.
func (f failure) explain(now time.Time) string {
	return fmt.Sprintf("%s, %s ago: %s", f.app, age(now.Sub(f.at)), f.what())
}

func (f failure) what() string {
	const yours = "you may use it, but "
	var port *PortError
	switch code := frame.CodeOf(f.err); {
	case errors.As(f.err, &port):
		return port.Error()
	case errors.Is(f.err, tunnels.ErrNoConnector), errors.Is(f.err, link.ErrNoCarrier):
		return yours + "none of its connectors can be reached at present. Tell your administrator."
	case errors.Is(f.err, tunnels.ErrUnknownApp):
		return "there is no app with this name that you can see. Check the spelling."
	case code == frame.Refused:
		return yours + "the app refused the connector's connection. Tell its owner."
	case code == frame.Timeout:
		return yours + "the app did not answer the connector. Tell its owner."
	case code == frame.Unreachable:
		return yours + "the connector cannot reach its address. Tell its owner."
	case code == frame.NameNotFound:
		return yours + "the connector cannot resolve its name. Tell its owner."
	default:
		return strings.TrimSuffix(Sentence(f.err), ".") + "."
	}
}

func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	default:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
}

// whyLatest explains the newest failure.
func (c *Client) whyLatest(ctx context.Context, conn *connection) (*controlv1.WhyResponse, error) {
	f, ok := c.failures.newest("")
	if !ok {
		return &controlv1.WhyResponse{Text: "No connection has failed since this client started."}, nil
	}
	denied, ok := errors.AsType[*tunnels.DeniedError](f.err)
	if !ok || denied.Receipt.GetId() == "" {
		return &controlv1.WhyResponse{Text: f.explain(time.Now())}, nil
	}
	resp, err := c.askWhy(ctx, conn, denied.Receipt.GetId())
	if err != nil {
		return nil, err
	}
	resp.Text = fmt.Sprintf("%s, %s ago: %s", f.app, age(time.Since(f.at)), resp.Text)
	if app, ok := c.Find(f.app); ok && app.Allowed {
		resp.Text += " You may use it by now."
	}
	return resp, nil
}

// whyQuery explains an app or a receipt; an app that is allowed may have failed all the
// same.
func (c *Client) whyQuery(ctx context.Context, conn *connection, query string) (*controlv1.WhyResponse, error) {
	resp, err := c.askWhy(ctx, conn, query)
	if err != nil {
		return nil, err
	}
	app, ok := c.Find(query)
	if !ok || !app.Allowed {
		return resp, nil
	}
	f, ok := c.failures.newest(app.Name)
	if _, denied := errors.AsType[*tunnels.DeniedError](f.err); ok && !denied {
		resp.Text += " The last connection failed. " + f.explain(time.Now())
	}
	return resp, nil
}

// denied notes refusals, also those of flows that were open.
func (c *Client) denied(app string, r *controlv1.Receipt) {
	name := app
	if known, ok := c.Find(app); ok {
		name = known.Name
	}
	c.failures.note(name, &tunnels.DeniedError{Receipt: r}, time.Now())
	if c.cfg.OnDenied != nil {
		c.cfg.OnDenied(app, r)
	}
}
