package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/auth"
	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/platform/ipc"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

const (
	// liveWait is how long the broker has to say whether somebody is signed in.
	liveWait = 6 * time.Second
	pingWait = 20 * time.Second
)

// Backend serves the local socket of a client without a tunnel interface.
type Backend struct{ *Client }

var _ localapi.Backend = Backend{}

// Up signs in, unless somebody is signed in at that broker already.
func (b Backend) Up(ctx context.Context, _ ipc.Peer, req *localv1.UpRequest, send func(*localv1.UpEvent) error) error {
	if !b.signedInAt(ctx, req.Url) {
		err := b.SignIn(ctx, SignInRequest{URL: req.Url, DeviceCode: req.DeviceCode, Show: func(p auth.Prompt) {
			_ = send(promptEvent(p)) // a caller that went away ends ctx
		}})
		if err != nil {
			return err
		}
	}
	name := b.Client.Status().Session.GetUserName()
	if err := send(&localv1.UpEvent{Stage: "signed_in", Text: "You are signed in as " + name + "."}); err != nil {
		return err
	}
	return send(&localv1.UpEvent{Stage: "ready"})
}

// signedInAt reports a live session at the broker of url; empty is the known one.
func (b Backend) signedInAt(ctx context.Context, url string) bool {
	m, err := b.store.Load()
	if err != nil {
		return false
	}
	if url != "" {
		asked, err1 := control.ParseURL(url)
		known, err2 := m.Broker()
		if err1 != nil || err2 != nil || asked != known {
			return false
		}
	}
	ctx, cancel := context.WithTimeout(ctx, liveWait)
	defer cancel()
	return b.AwaitLive(ctx) == nil
}

func promptEvent(p auth.Prompt) *localv1.UpEvent {
	e := &localv1.UpEvent{Stage: "open", Text: "Open this page to sign in:", Url: p.URL, UserCode: p.Code}
	if p.Code != "" {
		e.Stage, e.Text = "code", "Open this page on any machine, type the code there, and sign in:"
	}
	return e
}

// Down has nothing to take down.
func (Backend) Down(context.Context) error { return nil }

// Logout ends the session.
func (b Backend) Logout(ctx context.Context) error {
	if err := b.awaitConnection(ctx); err != nil {
		return err
	}
	return b.SignOut(ctx)
}

// awaitConnection waits a moment for Run to have begun.
func (c *Client) awaitConnection(ctx context.Context) error {
	if _, err := c.store.Load(); err != nil {
		return ErrNotSignedIn
	}
	ctx, cancel := context.WithTimeout(ctx, liveWait)
	defer cancel()
	return c.await(ctx, func(_ view, conn *connection) bool { return conn != nil })
}

// Apps lists what the user may see.
func (b Backend) Apps(ctx context.Context) (*localv1.AppsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, liveWait)
	defer cancel()
	if err := b.AwaitLive(ctx); err != nil {
		return nil, err
	}
	out := &localv1.AppsResponse{}
	for _, app := range b.Catalog().GetApps() {
		out.Apps = append(out.Apps, localApp(app))
	}
	return out, nil
}

func localApp(app *controlv1.CatalogApp) *localv1.App {
	v := &localv1.App{Name: app.Name, Allowed: app.Allowed, Hint: app.Hint}
	if len(app.Fqdns) > 0 {
		v.Fqdn = app.Fqdns[0]
	}
	for _, p := range app.Ports {
		text := fmt.Sprintf("%s/%d", p.Network, p.First)
		if p.Last != p.First {
			text += fmt.Sprintf("-%d", p.Last)
		}
		v.Ports = append(v.Ports, text)
	}
	return v
}

// Why explains an app, a receipt, or the latest refusal.
func (b Backend) Why(ctx context.Context, query string) (*localv1.WhyResponse, error) {
	if err := b.awaitConnection(ctx); err != nil {
		return nil, err
	}
	w, err := b.Client.Why(ctx, query)
	if err != nil {
		return nil, err
	}
	r := w.GetReceipt()
	return &localv1.WhyResponse{
		Text: w.Text, Receipt: r.GetId(), Verdict: verdictWord(r), Reason: r.GetReason(), Remedy: r.GetRemedy(), Contact: r.GetContact(),
	}, nil
}

func verdictWord(r *controlv1.Receipt) string {
	switch r.GetVerdict() {
	case controlv1.Verdict_VERDICT_ALLOW:
		return "allow"
	case controlv1.Verdict_VERDICT_LIMITED:
		return "limited"
	case controlv1.Verdict_VERDICT_STEP_UP:
		return "step_up"
	case controlv1.Verdict_VERDICT_DENY:
		return "deny"
	default:
		return ""
	}
}

// Ping measures the way to the first TCP port of an app.
func (b Backend) Ping(ctx context.Context, app string) (*localv1.PingResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pingWait)
	defer cancel()
	if err := b.AwaitLive(ctx); err != nil {
		return nil, err
	}
	known, ok := b.Find(app)
	if !ok {
		return nil, tunnels.ErrUnknownApp
	}
	port, ok := FirstPort(known, "tcp")
	if !ok {
		return nil, errors.New("this app has no TCP port to measure")
	}
	legs, err := b.Client.Ping(ctx, known.Name, port)
	if err != nil {
		return nil, err
	}
	out := &localv1.PingResponse{}
	for _, l := range legs {
		leg := &localv1.Leg{Name: l.Name, RttUs: l.RTT.Microseconds()}
		if l.Err != nil {
			leg.Error = Sentence(l.Err)
		}
		out.Legs = append(out.Legs, leg)
	}
	return out, nil
}

// Status describes the client.
func (b Backend) Status(context.Context) *localv1.StatusResponse {
	st := b.Client.Status()
	out := &localv1.StatusResponse{
		State: stateWord(st), Broker: st.Broker, DeviceId: string(st.Device), Version: b.cfg.Version,
		User: st.Session.GetUserName(), SessionId: st.Session.GetId(), SessionExpiresMs: st.Session.GetExpiresMs(),
		ClockOffsetMs: st.Uplink.Offset.Milliseconds(), AuditHeads: st.AuditHeads,
	}
	for _, l := range st.Links {
		out.Links = append(out.Links, linkStatus(l))
	}
	for _, f := range st.Facts {
		out.Facts = append(out.Facts, &localv1.FactStatus{Name: f.Name, State: f.State.String(), Evidence: f.Evidence})
	}
	if st.Enrolled && !st.Uplink.Connected && st.Uplink.Problem != "" {
		out.Problems = append(out.Problems, st.Uplink.Problem)
	}
	if st.Session == nil && st.Ended != "" {
		out.Problems = append(out.Problems, st.Ended)
	}
	if st.AuditProblem != "" {
		out.Problems = append(out.Problems, st.AuditProblem)
	}
	return out
}

func stateWord(st Status) string {
	switch {
	case !st.Enrolled:
		return "signed_out"
	case st.Session == nil && st.Uplink.Connected:
		return "signed_out"
	case st.Session == nil:
		return "connecting"
	case !st.Uplink.Connected:
		return "offline"
	default:
		return "up"
	}
}

func linkStatus(l tunnels.Status) *localv1.LinkStatus {
	out := &localv1.LinkStatus{
		ConnectorId: string(l.Connector), Flows: uint32(l.Flows), BytesIn: l.Received, BytesOut: l.Sent,
	}
	for _, c := range l.Carriers {
		if c.Active {
			out.Carrier, out.Path, out.RttUs = string(c.Kind), c.Path, c.RTT.Microseconds()
		} else {
			out.Standby = string(c.Kind) + " " + c.Path
		}
	}
	return out
}

// Sentence says an error to a person.
func Sentence(err error) string {
	if port, ok := errors.AsType[*PortError](err); ok {
		return port.Error()
	}
	if refusal, ok := errors.AsType[*frame.Error](err); ok {
		return refusal.Code.Sentence()
	}
	return err.Error()
}

// Code maps errors to codes for the local socket, in this one place.
func (Backend) Code(err error) (connect.Code, string) {
	_, denied := errors.AsType[*tunnels.DeniedError](err)
	_, refused := errors.AsType[*frame.Error](err)
	switch {
	case denied:
		return connect.CodePermissionDenied, Sentence(err)
	case errors.Is(err, ErrNotSignedIn), errors.Is(err, tunnels.ErrSignedOut):
		return connect.CodeFailedPrecondition, ErrNotSignedIn.Error()
	case errors.Is(err, tunnels.ErrBroker), errors.Is(err, tunnels.ErrNotGiven):
		return connect.CodeUnavailable, err.Error()
	case errors.Is(err, tunnels.ErrUnknownApp):
		return connect.CodeNotFound, err.Error()
	case refused, errors.Is(err, tunnels.ErrNoConnector), errors.Is(err, link.ErrNoCarrier):
		return connect.CodeAborted, Sentence(err)
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled, "cancelled"
	default:
		return connect.CodeUnknown, err.Error()
	}
}
