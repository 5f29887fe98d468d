package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/auth"
	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/client/uplink"
	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

// SignInRequest describes one sign-in.
type SignInRequest struct {
	// URL is the broker's URL with its pin; empty is the broker of this device.
	URL string
	// DeviceCode signs in with a browser on any machine.
	DeviceCode bool
	// Show is told the page to open. It must not block.
	Show func(auth.Prompt)
}

// SignIn signs a person in and admits this device at its first time. It returns when the
// apps are known; Run must be running.
func (c *Client) SignIn(ctx context.Context, r SignInRequest) error {
	s, err := c.newSignIn(r.URL)
	if err != nil {
		return err
	}
	defer s.http.CloseIdleConnections()
	hello, err := s.hello(ctx)
	if err != nil {
		return err
	}
	tokens, err := s.tokens(ctx, hello, r)
	if err != nil {
		return err
	}
	before := c.snapshot().session.GetSession().GetId()
	if err := s.redeem(ctx, hello, tokens); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	err = c.await(wait, func(v view, _ *connection) bool { return v.live() && v.session.GetSession().GetId() != before })
	if err != nil {
		return c.unreachable(err)
	}
	return nil
}

// signIn is one sign-in under way.
type signIn struct {
	c      *Client
	known  state.Membership
	broker control.Broker
	member *control.Member
	http   *http.Client
	enroll controlv1connect.EnrollServiceClient
}

func (c *Client) newSignIn(url string) (*signIn, error) {
	known, err := c.store.Load()
	if err != nil && !errors.Is(err, state.ErrNotEnrolled) {
		return nil, err
	}
	if url == "" {
		url = known.URL
	}
	if url == "" {
		return nil, ErrNotSignedIn
	}
	broker, err := control.ParseURL(url)
	if err != nil {
		return nil, err
	}
	if old, err := known.Broker(); err == nil && old.Pin != broker.Pin {
		return nil, ErrOtherBroker
	}
	member, err := control.NewMember(c.store.Key(), known.Chain, nil)
	if err != nil {
		return nil, err
	}
	s := &signIn{c: c, known: known, broker: broker, member: member}
	s.http = control.NewClient(control.ClientConfig{Broker: broker, Certificate: member.Certificate, Dialer: c.cfg.Dialer})
	s.enroll = controlv1connect.NewEnrollServiceClient(s.http, broker.BaseURL())
	return s, nil
}

func (s *signIn) hello(ctx context.Context) (*controlv1.HelloResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.enroll.Hello(ctx, connect.NewRequest(&controlv1.HelloRequest{Role: "device", Version: s.c.cfg.Version}))
	if err != nil {
		return nil, s.explainPin(explainCall(err))
	}
	m := resp.Msg
	if _, err := control.ParseCA(m.CaDer, s.broker.Pin); err != nil {
		return nil, s.explainPin(err)
	}
	if err := uplink.CheckClock(uplink.Offset(time.Now(), m.TimeMs)); err != nil {
		return nil, err
	}
	if !m.Ready {
		return nil, ErrNotReady
	}
	return m, nil
}

// explainPin says what a wrong pin means; other errors stay.
func (s *signIn) explainPin(err error) error {
	if errors.Is(err, control.ErrPin) {
		return &PinError{Address: s.broker.Address}
	}
	return err
}

// PinError is a server that does not prove to be the broker of the URL.
type PinError struct{ Address string }

// Error says what to do, and what not.
func (e *PinError) Error() string {
	return "Another broker, or somebody in between, answers at " + e.Address + ". Copy the URL again; if it is right, do not go on."
}

// Unwrap says that the broker itself was not reached.
func (*PinError) Unwrap() []error { return []error{tunnels.ErrBroker, control.ErrPin} }

func (s *signIn) tokens(ctx context.Context, hello *controlv1.HelloResponse, r SignInRequest) (auth.Tokens, error) {
	cfg := auth.Config{
		Broker: s.broker, Dialer: s.c.cfg.Dialer, Issuer: hello.Issuer, ClientID: hello.ClientId,
		Key: s.member.KeyID(), DeviceName: s.c.device().Name, Show: r.Show,
	}
	if r.DeviceCode {
		return auth.SignInDevice(ctx, cfg)
	}
	return auth.SignIn(ctx, cfg)
}

// redeem opens a session with the tokens: on the device that the broker knows, or as a new
// one. A device whose certificate has ended, or that was removed, enrols again.
func (s *signIn) redeem(ctx context.Context, hello *controlv1.HelloResponse, t auth.Tokens) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if s.member.Enrolled() {
		device := controlv1connect.NewDeviceServiceClient(s.http, s.broker.BaseURL())
		_, err := device.SignIn(ctx, connect.NewRequest(&controlv1.SignInRequest{
			AccessToken: string(t.Access), RefreshToken: string(t.Refresh), Device: s.c.device(),
		}))
		if err == nil {
			return s.keep(s.known.Device, s.known.Chain, hello.CaDer)
		}
		if connect.CodeOf(err) != connect.CodeUnauthenticated && connect.CodeOf(err) != connect.CodeNotFound {
			return explainCall(err)
		}
	}
	return s.enrol(ctx, hello, t)
}

func (s *signIn) enrol(ctx context.Context, hello *controlv1.HelloResponse, t auth.Tokens) error {
	csr, err := s.member.Request()
	if err != nil {
		return err
	}
	resp, err := s.enroll.EnrollDevice(ctx, connect.NewRequest(&controlv1.EnrollDeviceRequest{
		AccessToken: string(t.Access), RefreshToken: string(t.Refresh), CsrDer: csr, Device: s.c.device(),
	}))
	if err != nil {
		return explainCall(err)
	}
	id, err := ids.Parse[ids.DeviceID](resp.Msg.DeviceId)
	if err != nil {
		return fmt.Errorf("answer of the broker: %w", err)
	}
	if err := s.member.SetChain(resp.Msg.ChainDer); err != nil {
		return fmt.Errorf("answer of the broker: %w", err)
	}
	return s.keep(id, resp.Msg.ChainDer, hello.CaDer)
}

// keep stores the membership and lets Run take it, unless it is the one in use.
func (s *signIn) keep(id ids.DeviceID, chain [][]byte, ca []byte) error {
	m := state.Membership{URL: s.broker.String(), Device: id, Chain: chain, CA: ca}
	if m.URL == s.known.URL && id == s.known.Device && len(chain) > 0 && len(s.known.Chain) > 0 && string(chain[0]) == string(s.known.Chain[0]) {
		return nil
	}
	if err := s.c.store.Save(m); err != nil {
		return err
	}
	select {
	case s.c.enrolled <- struct{}{}:
	default:
	}
	return nil
}

// SignOut ends the session at the broker and every tunnel here.
func (c *Client) SignOut(ctx context.Context) error {
	conn := c.connection()
	if conn == nil {
		return ErrNotSignedIn
	}
	conn.tunnels.EndAll()
	c.failures.forget() // the next user has none of them
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := conn.device.SignOut(ctx, connect.NewRequest(&controlv1.SignOutRequest{})); err != nil {
		return explainCall(err)
	}
	// The broker says the same soon; what is known is not waited for.
	c.update(func(v *view) {
		v.session, v.catalog, v.heard = &controlv1.SessionNews{State: "ended", Reason: "You signed out."}, &controlv1.Catalog{}, true
	})
	return nil
}

// Why explains an app, a receipt, or the latest failure when query is empty.
func (c *Client) Why(ctx context.Context, query string) (*controlv1.WhyResponse, error) {
	conn := c.connection()
	if conn == nil {
		return nil, ErrNotSignedIn
	}
	if query == "" {
		return c.whyLatest(ctx, conn)
	}
	return c.whyQuery(ctx, conn, query)
}

func (c *Client) askWhy(ctx context.Context, conn *connection, query string) (*controlv1.WhyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := conn.device.Why(ctx, connect.NewRequest(&controlv1.WhyRequest{Query: query}))
	if err != nil {
		return nil, explainCall(err)
	}
	return resp.Msg, nil
}

// explainCall turns an error of a call into one of ours, with the broker's own sentence
// where it gave one.
func explainCall(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) || !connect.IsWireError(err) {
		return fmt.Errorf("%w: %w", tunnels.ErrBroker, err)
	}
	switch control.ReasonOf(err) {
	case controlv1.Reason_REASON_SIGNED_OUT:
		return ErrNotSignedIn
	case controlv1.Reason_REASON_REMOVED:
		return fmt.Errorf("%w: %s", tunnels.ErrRemoved, ce.Message())
	}
	switch ce.Code() { // what a broker that is older than reasons says
	case connect.CodeFailedPrecondition:
		return ErrNotSignedIn
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return fmt.Errorf("%w: %s", ErrBlocked, ce.Message())
	default:
		return errors.New(ce.Message())
	}
}
