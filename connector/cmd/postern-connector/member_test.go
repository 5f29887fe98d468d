package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/connector/flowlog"
	"github.com/postern-zt/postern/connector/statusapi"
	"github.com/postern-zt/postern/netstack/control/controltest"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

// broker counts tokens and records what a connector asks for.
type broker struct {
	controlv1connect.UnimplementedEnrollServiceHandler
	controlv1connect.UnimplementedConnectorServiceHandler
	a       *controltest.Authority
	joins   int
	shipped int
	asked   []string
	refuse  error
}

func (b *broker) Hello(context.Context, *connect.Request[controlv1.HelloRequest]) (*connect.Response[controlv1.HelloResponse], error) {
	return connect.NewResponse(&controlv1.HelloResponse{CaDer: b.a.CA.Raw}), nil
}

func (b *broker) JoinConnector(_ context.Context, req *connect.Request[controlv1.JoinConnectorRequest]) (*connect.Response[controlv1.JoinResponse], error) {
	b.joins++
	id := ids.New[ids.ConnectorID]()
	return connect.NewResponse(&controlv1.JoinResponse{
		Id: string(id), SiteId: string(ids.New[ids.SiteID]()), SiteName: "berlin", ChainDer: b.a.Chain("/connector/"+string(id), req.Msg.CsrDer),
	}), nil
}

func (b *broker) Ship(_ context.Context, req *connect.Request[controlv1.ShipRequest]) (*connect.Response[controlv1.ShipResponse], error) {
	if b.refuse != nil {
		return nil, b.refuse
	}
	b.shipped += len(req.Msg.Records)
	rec, err := chain.ParseLine(req.Msg.Records[len(req.Msg.Records)-1])
	return connect.NewResponse(&controlv1.ShipResponse{Through: rec.Seq}), err
}

func (b *broker) Propose(_ context.Context, req *connect.Request[controlv1.ProposeRequest]) (*connect.Response[controlv1.ProposeResponse], error) {
	resp := &controlv1.ProposeResponse{}
	for i, p := range req.Msg.Publish {
		b.asked = append(b.asked, p.Name+"="+p.Targets[0])
		resp.Results = append(resp.Results, &controlv1.PublishResult{
			Name: p.Name, State: []string{"published", "unchanged", "proposed", "refused"}[i], Message: "why",
		})
	}
	return connect.NewResponse(resp), nil
}

func (b *broker) Leave(context.Context, *connect.Request[controlv1.LeaveRequest]) (*connect.Response[controlv1.LeaveResponse], error) {
	return connect.NewResponse(&controlv1.LeaveResponse{}), b.refuse
}

// start serves a broker and gives a machine beside it.
func start(t *testing.T) (*broker, *env, *bytes.Buffer, *runCmd) {
	t.Helper()
	b := &broker{a: controltest.New(t)}
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewEnrollServiceHandler(b))
	mux.Handle(controlv1connect.NewConnectorServiceHandler(b))
	at := b.a.Broker(b.a.Serve("", mux).Addr)
	out, dir := new(bytes.Buffer), t.TempDir()
	e := &env{
		ctx: t.Context(), dir: dir, socket: filepath.Join(dir, "connector.sock"),
		log: slog.New(slog.DiscardHandler), stdin: strings.NewReader(""), out: out, token: "token",
	}
	return b, e, out, &runCmd{Join: at.String(), Name: "con"}
}

func join(t *testing.T, e *env, r *runCmd) (*enroll.Store, enroll.Membership) {
	t.Helper()
	store, err := enroll.Open(e.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ensureJoined(e, store); err != nil {
		t.Fatal(err)
	}
	m, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	return store, m
}

// recorded leaves one record that waits for the broker.
func recorded(t *testing.T, s *enroll.Store, m enroll.Membership) {
	t.Helper()
	l, err := flowlog.Open(s.Flows(), m.Connector, s.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Append(chain.Event{Kind: chain.FlowClosed, Details: map[string]string{"flow": "a"}}); err != nil {
		t.Fatal(err)
	}
}

func denied(r controlv1.Reason) error {
	return controltest.Refusal(connect.CodePermissionDenied, r, "x")
}

func TestLeave(t *testing.T) {
	for name, c := range map[string]struct {
		refuse error
		left   bool
		ship   int
	}{
		"member":  {nil, true, 1},
		"removed": {denied(controlv1.Reason_REASON_REMOVED), true, 0},
		"unknown": {connect.NewError(connect.CodeNotFound, errors.New("x")), true, 0},
		"blocked": {denied(controlv1.Reason_REASON_BLOCKED), false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b, e, _, r := start(t)
			s, m := join(t, e, r)
			recorded(t, s, m)
			b.refuse = c.refuse
			if err := (&leaveCmd{}).Run(e); (err == nil) != c.left || enroll.Joined(e.dir) == c.left || b.shipped != c.ship {
				t.Fatalf("leave = %v, %d records shipped", err, b.shipped)
			}
			if !c.left {
				return
			}
			if _, err := os.Stat(s.Flows() + "-" + string(m.Connector)); err != nil {
				t.Error(err)
			}
			b.refuse = nil
			s, again := join(t, e, r)
			l, err := flowlog.Open(s.Flows(), again.Connector, s.Key(), nil)
			if err != nil || again.Connector == m.Connector || l.Waiting() != 0 {
				t.Fatalf("after the new join as %s: %v", again.Connector, err)
			}
			l.Close()
		})
	}
}

func TestLeaveWhileItRuns(t *testing.T) {
	b, e, _, r := start(t)
	s, m := join(t, e, r)
	recorded(t, s, m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- statusapi.Serve(ctx, e.socket, func() statusapi.Status { return statusapi.Status{} }, e.log)
	}()
	defer func() { cancel(); <-done }()
	for !runs(e) {
		select {
		case err := <-done:
			t.Fatalf("status socket: %v", err)
		default:
		}
	}
	if err := (&leaveCmd{}).Run(e); !errors.Is(err, errRuns) || !enroll.Joined(e.dir) {
		t.Errorf("leave = %v", err)
	}
	if err := (&leaveCmd{Force: true}).Run(e); err != nil || enroll.Joined(e.dir) || b.shipped != 0 {
		t.Errorf("leave --force = %v, %d records shipped beside the running one", err, b.shipped)
	}
}

func TestPublishIsCheckedBeforeTheToken(t *testing.T) {
	b, e, _, r := start(t)
	store, err := enroll.Open(e.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"wiki", "=10.0.0.5:80", "wiki=10.0.0.5", "wiki=10.0.0.5:0", "wiki=10.0.0.5:65536", "wiki=:80",
		"wiki=10.0.0.5:90-80", "wiki=80-81=10.0.0.5:80", "wiki=x=10.0.0.5:80", "wiki=10.0.0.0/24:80", "wiki=10.0.0.5:80/sctp", "wiki=fd00::1:80:"} {
		r.Publish = []string{bad}
		if err := r.ensureJoined(e, store); err == nil || b.joins != 0 {
			t.Fatalf("%s: %v, %d tokens spent", bad, err, b.joins)
		}
	}
	for _, good := range []string{"wiki=10.0.0.5:80", "dns=10.0.0.2:53/udp", "r=host:8000-8010", "p=80=host:8080", "s=80-81=[fd00::1]:8080-8081/tcp+udp"} {
		if _, err := parsePublish([]string{good}); err != nil {
			t.Error(err)
		}
	}
}

func TestPublishOfAJoinedConnector(t *testing.T) {
	b, e, out, r := start(t)
	join(t, e, r)
	r.Publish = []string{"a=h:1", "b=h:2", "c=h:3", "d=h:4/udp"}
	out.Reset()
	join(t, e, r)
	want := "Published a.\nPublished b already.\nProposed c: an administrator has to approve it.\nNot published d: why\n"
	if out.String() != want || strings.Join(b.asked, " ") != strings.Join(r.Publish, " ") || b.joins != 1 {
		t.Errorf("asked %q, said %q, %d joins", b.asked, out, b.joins)
	}
}
