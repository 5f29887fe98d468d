package uplink_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/connector/uplink"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBroker plays one script per Watch call, the last one for all further calls.
type fakeBroker struct {
	controlv1connect.UnimplementedConnectorServiceHandler
	scripts []func(ctx context.Context, send func(*controlv1.ConnectorPush) error) error
	ackErr  error

	watched chan *controlv1.WatchRequest
	acked   chan *controlv1.AcknowledgeRequest
	calls   atomic.Int32
	stuck   chan struct{} // not nil: acknowledgements wait for it
}

func (b *fakeBroker) Watch(ctx context.Context, req *connect.Request[controlv1.WatchRequest], out *connect.ServerStream[controlv1.ConnectorPush]) error {
	n := min(int(b.calls.Add(1)), len(b.scripts)) - 1
	b.watched <- req.Msg
	return b.scripts[n](ctx, func(p *controlv1.ConnectorPush) error {
		if p.TimeMs == 0 {
			p.TimeMs = time.Now().UnixMilli()
		}
		return out.Send(p)
	})
}

func (b *fakeBroker) Acknowledge(_ context.Context, req *connect.Request[controlv1.AcknowledgeRequest]) (*connect.Response[controlv1.AcknowledgeResponse], error) {
	b.acked <- req.Msg
	if b.stuck != nil {
		<-b.stuck
	}
	return connect.NewResponse(&controlv1.AcknowledgeResponse{}), b.ackErr
}

// sinkFake records what it is given.
type sinkFake struct {
	mu        sync.Mutex // guards the fields below
	got       []string
	keys      seal.Keys
	holds     guard.Mark
	active    []ids.GrantID
	statement func(envelope string) error
	news      chan string
}

func newSink() *sinkFake {
	return &sinkFake{news: make(chan string, 64), statement: func(string) error { return nil }}
}

func (s *sinkFake) note(what string) {
	s.mu.Lock()
	s.got = append(s.got, what)
	s.mu.Unlock()
	s.news <- what
}

func (s *sinkFake) Keys(k seal.Keys) {
	s.mu.Lock()
	s.keys = k
	s.mu.Unlock()
	s.note("keys")
}
func (s *sinkFake) Assignment(e []byte) error { s.note("assignment " + string(e)); return nil }
func (s *sinkFake) Statement(e []byte) error {
	s.note("statement " + string(e))
	return s.statement(string(e))
}
func (s *sinkFake) Relays(p []*controlv1.RelayPath) { s.note(fmt.Sprintf("relays %d", len(p))) }
func (s *sinkFake) Holds() guard.Mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holds
}

func (s *sinkFake) Active() []ids.GrantID {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.active
	s.active = nil
	return out
}
func (s *sinkFake) NotReported(list []ids.GrantID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active = append(s.active, list...)
}

type fixture struct {
	*controltest.Authority
	*uplink.Uplink
	broker *fakeBroker
	sink   *sinkFake
	// connections counts the TLS connections that were opened.
	connections atomic.Int32
}

func run(t *testing.T, b *fakeBroker, sink *sinkFake, a *controltest.Authority) *fixture {
	t.Helper()
	b.watched, b.acked = make(chan *controlv1.WatchRequest, 64), make(chan *controlv1.AcknowledgeRequest, 64)
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewConnectorServiceHandler(b))
	at := a.Broker(a.Serve("", mux).Addr)
	f := &fixture{Authority: a, broker: b, sink: sink}
	key := controltest.Key(t)
	hc := control.NewClient(control.ClientConfig{Broker: at, Certificate: func() (*tls.Certificate, error) {
		f.connections.Add(1)
		return control.SelfSigned(key, time.Now())
	}})
	f.Uplink = uplink.New(uplink.Config{HTTP: hc, Broker: at, CA: a.CA, Version: "1.2", Sink: sink, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		hc.CloseIdleConnections()
	})
	return f
}

type script = func(ctx context.Context, send func(*controlv1.ConnectorPush) error) error

// sends returns a script that sends pushes and stays.
func sends(list ...*controlv1.ConnectorPush) script {
	return func(ctx context.Context, send func(*controlv1.ConnectorPush) error) error {
		for _, p := range list {
			if err := send(p); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func fails(err error) script {
	return func(context.Context, func(*controlv1.ConnectorPush) error) error { return err }
}

func statement(s string) *controlv1.ConnectorPush {
	return &controlv1.ConnectorPush{News: &controlv1.ConnectorPush_Statement{Statement: []byte(s)}}
}

func keys(certs ...[]byte) *controlv1.ConnectorPush {
	return &controlv1.ConnectorPush{News: &controlv1.ConnectorPush_Keys{Keys: &controlv1.Keys{CertificatesDer: certs}}}
}

func TestHandsOnAndAcknowledges(t *testing.T) {
	a := controltest.New(t)
	signer, cert := a.Signer()
	stranger, foreign := controltest.New(t).Signer()
	b := &fakeBroker{scripts: []script{sends(
		keys(cert, foreign, []byte("garbage")),
		statement("one"),
		&controlv1.ConnectorPush{News: &controlv1.ConnectorPush_Assignment{Assignment: []byte("two")}},
		&controlv1.ConnectorPush{News: &controlv1.ConnectorPush_Relays{Relays: &controlv1.Relays{Relays: []*controlv1.RelayPath{{}, {}}}}},
		&controlv1.ConnectorPush{},
	)}}
	sink := newSink()
	sink.holds = guard.Mark{Epoch: 3, Sequence: 9, Revoked: 7, Assignment: 4}
	f := run(t, b, sink, a)
	if w := <-b.watched; w.Epoch != 3 || w.Sequence != 9 || w.Revoked != 7 || w.Version != "1.2" {
		t.Errorf("watch request %v", w)
	}
	var got []string
	for range 4 {
		got = append(got, <-sink.news)
	}
	if want := []string{"keys", "statement one", "assignment two", "relays 2"}; !slices.Equal(got, want) {
		t.Errorf("the sink got %q, want %q", got, want)
	}
	for range 2 {
		if m := <-b.acked; m.StatementSequence != 9 || m.Revoked != 7 || m.AssignmentVersion != 4 {
			t.Errorf("acknowledged %v", m)
		}
	}
	if st := f.State(); !st.Connected || st.Problem != "" || st.Offset.Abs() > time.Minute {
		t.Errorf("state %+v", st)
	}
	const domain = "postern test/1"
	sink.mu.Lock()
	defer sink.mu.Unlock()
	if _, err := sink.keys.Open(domain, signer.Seal(domain, []byte("x"))); err != nil {
		t.Errorf("the broker's key: %v", err)
	}
	if _, err := sink.keys.Open(domain, stranger.Seal(domain, []byte("x"))); err == nil {
		t.Error("a key of another CA was taken")
	}
}

// TestGapAsksAnew: the next request says what is held, so that the broker sends the rest.
// A broker whose store does not answer takes no acknowledgement; its statements, and so
// its revocations, are applied all the same.
func TestStatementsDoNotWaitForAcknowledgements(t *testing.T) {
	a := controltest.New(t)
	_, cert := a.Signer()
	b := &fakeBroker{stuck: make(chan struct{}), scripts: []script{sends(keys(cert), statement("one"), statement("two"), statement("three"))}}
	f := run(t, b, newSink(), a)
	t.Cleanup(func() { close(b.stuck) })
	for what := ""; what != "statement three"; {
		what = <-f.sink.news
	}
	if n := len(b.acked); n > 1 {
		t.Errorf("%d acknowledgements were waited for before the third statement", n)
	}
}

func TestGapAsksAnew(t *testing.T) {
	b := &fakeBroker{scripts: []script{sends(statement("with a gap"), statement("never read")), sends(statement("whole"))}}
	sink := newSink()
	sink.holds = guard.Mark{Epoch: 1, Sequence: 5, Revoked: 5}
	sink.statement = func(s string) error {
		if s == "with a gap" {
			sink.mu.Lock()
			sink.holds.Sequence = 6
			sink.mu.Unlock()
			return fmt.Errorf("statement: %w", guard.ErrGap)
		}
		return nil
	}
	run(t, b, sink, controltest.New(t))
	<-b.watched
	if w := <-b.watched; w.Sequence != 6 || w.Revoked != 5 {
		t.Errorf("after the gap: %v", w)
	}
	for _, want := range []string{"statement with a gap", "statement whole"} {
		if got := <-sink.news; got != want {
			t.Errorf("the sink got %q, want %q", got, want)
		}
	}
}

// TestStaysOpen: neither a refused message nor a lost acknowledgement keeps later
// revocations away.
func TestStaysOpen(t *testing.T) {
	b := &fakeBroker{
		scripts: []script{sends(statement("refused"), statement("next"))},
		ackErr:  connect.NewError(connect.CodeInternal, errors.New("the disk is full")),
	}
	sink := newSink()
	sink.statement = func(s string) error {
		if s == "refused" {
			return guard.ErrOld
		}
		return nil
	}
	sink.active = []ids.GrantID{"gnt_x"}
	run(t, b, sink, controltest.New(t))
	for _, want := range []string{"statement refused", "statement next"} {
		if got := <-sink.news; got != want {
			t.Errorf("the sink got %q, want %q", got, want)
		}
	}
	for range 2 { // what did not arrive is reported again
		if m := <-b.acked; !m.ReportsActivity || !slices.Equal(m.ActiveGrants, []string{"gnt_x"}) {
			t.Errorf("acknowledged: %v", m)
		}
	}
	if n := b.calls.Load(); n != 1 {
		t.Errorf("%d streams", n)
	}
}

func TestClockFarOff(t *testing.T) {
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour, "no time at all": time.Duration(time.Now().UnixMilli()-1) * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			late := statement("late")
			late.TimeMs = time.Now().Add(-off).UnixMilli()
			b := &fakeBroker{scripts: []script{sends(late)}}
			sink := newSink()
			f := run(t, b, sink, controltest.New(t))
			<-b.watched
			<-b.watched // it has given up the first stream
			if st := f.State(); st.Connected || st.Problem == "" {
				t.Errorf("state %+v", st)
			}
			if len(sink.news) != 0 {
				t.Errorf("the sink got %q", <-sink.news)
			}
		})
	}
}

func TestClockFourMinutesOffWorks(t *testing.T) {
	p := statement("one")
	p.TimeMs = time.Now().Add(-4 * time.Minute).UnixMilli()
	b := &fakeBroker{scripts: []script{sends(p)}}
	sink := newSink()
	f := run(t, b, sink, controltest.New(t))
	<-sink.news
	if st := f.State(); !st.Connected || st.Offset < 3*time.Minute || st.Offset > 5*time.Minute {
		t.Errorf("state %+v", st)
	}
}

func TestReconnectsWhenTold(t *testing.T) {
	bye := &controlv1.ConnectorPush{News: &controlv1.ConnectorPush_Reconnect{Reconnect: &controlv1.Reconnect{AfterMs: 1, SpreadMs: 1}}}
	b := &fakeBroker{scripts: []script{sends(bye), sends(statement("back"))}}
	sink := newSink()
	run(t, b, sink, controltest.New(t))
	if got := <-sink.news; got != "statement back" {
		t.Errorf("the sink got %q", got)
	}
}

// TestRefusedOpensANewConnection: the certificate of the old one may have been replaced.
func TestRefusedOpensANewConnection(t *testing.T) {
	b := &fakeBroker{scripts: []script{fails(connect.NewError(connect.CodeUnauthenticated, errors.New("expired"))), sends(statement("in"))}}
	sink := newSink()
	f := run(t, b, sink, controltest.New(t))
	<-sink.news
	if n := f.connections.Load(); n != 2 {
		t.Errorf("%d connections, want one for each try", n)
	}
}

// TestRemovedEndsRun: a removal is final, a block may be lifted.
func TestRemovedEndsRun(t *testing.T) {
	denied := func(r controlv1.Reason, text string) script {
		return fails(controltest.Refusal(connect.CodePermissionDenied, r, text))
	}
	b := &fakeBroker{scripts: []script{
		denied(controlv1.Reason_REASON_BLOCKED, "an administrator has blocked this machine"),
		fails(connect.NewError(connect.CodePermissionDenied, errors.New("an administrator has removed this machine"))), // an older broker
		denied(99, "an administrator has removed this machine"),                                                        // a later one
		denied(controlv1.Reason_REASON_REMOVED, "in other words"),
	}}
	b.watched = make(chan *controlv1.WatchRequest, 8)
	a := controltest.New(t)
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewConnectorServiceHandler(b))
	at := a.Broker(a.Serve("", mux).Addr)
	key := controltest.Key(t)
	hc := control.NewClient(control.ClientConfig{Broker: at, Certificate: func() (*tls.Certificate, error) {
		return control.SelfSigned(key, time.Now())
	}})
	u := uplink.New(uplink.Config{HTTP: hc, Broker: at, CA: a.CA, Sink: newSink(), Log: slog.New(slog.DiscardHandler)})
	if err := u.Run(t.Context()); !errors.Is(err, uplink.ErrRemoved) || b.calls.Load() != 4 {
		t.Errorf("Run = %v after %d calls, want it to end at the removal, the fourth", err, b.calls.Load())
	}
	hc.CloseIdleConnections()
}

func TestProblem(t *testing.T) {
	for want, err := range map[string]error{
		"the broker closed the stream":                                              nil,
		"the broker does not accept this connector's certificate":                   connect.NewError(connect.CodeUnauthenticated, errors.New("x")),
		"an administrator has blocked this connector":                               controltest.Heard(connect.CodePermissionDenied, controlv1.Reason_REASON_BLOCKED, "x"),
		"an administrator has removed this connector":                               controltest.Heard(connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, "x"),
		"the broker has blocked or removed this connector":                          connect.NewError(connect.CodePermissionDenied, errors.New("x")),
		"the clock of this machine is more than 5 minutes off the broker's; set it": uplink.ErrClock,
	} {
		if got := uplink.Problem(err); got != want {
			t.Errorf("Problem(%v) = %q, want %q", err, got, want)
		}
	}
}
