package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
	"github.com/postern-zt/postern/proto/ids"
)

const token = "the right token"

// broker answers joins; edit changes what it says.
type broker struct {
	controlv1connect.UnimplementedEnrollServiceHandler
	a    *controltest.Authority
	edit func(*controlv1.JoinResponse)
}

func (b broker) Hello(context.Context, *connect.Request[controlv1.HelloRequest]) (*connect.Response[controlv1.HelloResponse], error) {
	return connect.NewResponse(&controlv1.HelloResponse{CaDer: b.a.CA.Raw}), nil
}

func (b broker) JoinConnector(_ context.Context, req *connect.Request[controlv1.JoinConnectorRequest]) (*connect.Response[controlv1.JoinResponse], error) {
	if req.Msg.Token != token {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("this token was never issued"))
	}
	id := ids.New[ids.ConnectorID]()
	m := &controlv1.JoinResponse{
		Id: string(id), SiteId: string(ids.New[ids.SiteID]()), SiteName: "berlin", ChainDer: b.a.Chain("/connector/"+string(id), req.Msg.CsrDer),
	}
	b.edit(m)
	return connect.NewResponse(m), nil
}

func serve(t *testing.T, edit func(*controlv1.JoinResponse)) (*controltest.Authority, control.Broker) {
	t.Helper()
	a := controltest.New(t)
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewEnrollServiceHandler(broker{a: a, edit: edit}))
	return a, a.Broker(a.Serve("", mux).Addr)
}

func open(t *testing.T) *enroll.Store {
	t.Helper()
	s, err := enroll.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJoinKeepsAndForgets(t *testing.T) {
	_, at := serve(t, func(*controlv1.JoinResponse) {})
	s := open(t)
	if enroll.Joined(s.Dir()) {
		t.Error("joined before the join")
	}
	m, _, err := s.Join(t.Context(), enroll.Join{URL: at.String(), Token: token, Name: "con"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || got.Connector != m.Connector || got.SiteName != "berlin" || !enroll.Joined(s.Dir()) {
		t.Errorf("Load = %+v, %v", got, err)
	}
	files, _ := filepath.Glob(filepath.Join(s.Dir(), "*"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if st, _ := os.Stat(f); err != nil || strings.Contains(string(b), token) || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	want := guard.Mark{Epoch: 1, Sequence: 2, Revoked: 3, Assignment: 4}
	if err := s.SaveMark(want); err != nil {
		t.Fatal(err)
	}
	if got, err := s.LoadMark(); err != nil || got != want {
		t.Errorf("LoadMark = %+v, %v", got, err)
	}
	if err := errors.Join(s.Forget(), s.Forget()); err != nil {
		t.Errorf("Forget = %v", err)
	}
	if _, err := s.Load(); !errors.Is(err, enroll.ErrNotJoined) {
		t.Errorf("Load after Forget = %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(s.Dir(), "*")); len(files) != 0 {
		t.Errorf("left behind: %q", files)
	}
}

func TestJoinRefuses(t *testing.T) {
	_, at := serve(t, func(*controlv1.JoinResponse) {})
	other := controltest.New(t)
	lying := func(edit func(*controlv1.JoinResponse)) string { _, b := serve(t, edit); return b.String() }
	for name, j := range map[string]enroll.Join{
		"wrong token":     {URL: at.String(), Token: "guessed"},
		"another pin":     {URL: other.Broker(at.Address).String(), Token: token},
		"no pin":          {URL: "https://" + at.Address + "/", Token: token},
		"malformed id":    {URL: lying(func(m *controlv1.JoinResponse) { m.Id = "../../etc" }), Token: token},
		"malformed site":  {URL: lying(func(m *controlv1.JoinResponse) { m.SiteId = "" }), Token: token},
		"no certificate":  {URL: lying(func(m *controlv1.JoinResponse) { m.ChainDer = nil }), Token: token},
		"foreign key":     {URL: lying(func(m *controlv1.JoinResponse) { m.ChainDer = [][]byte{other.CA.Raw} }), Token: token},
		"not certificate": {URL: lying(func(m *controlv1.JoinResponse) { m.ChainDer = [][]byte{{1}} }), Token: token},
	} {
		s := open(t)
		if _, _, err := s.Join(t.Context(), j); err == nil || strings.Contains(err.Error(), j.Token) {
			t.Errorf("%s: Join = %v", name, err)
		}
		if _, err := s.Load(); !errors.Is(err, enroll.ErrNotJoined) {
			t.Errorf("%s: stored all the same: %v", name, err)
		}
		if s := fmt.Sprintf("%v %+v %#v", j, j, j); strings.Contains(s, j.Token) {
			t.Errorf("%s: the token shows: %s", name, s)
		}
	}
}

func TestDamagedState(t *testing.T) {
	s := open(t)
	for name, load := range map[string]func() error{
		"broker.json": func() error { _, err := s.Load(); return err },
		"mark.json":   func() error { _, err := s.LoadMark(); return err },
	} {
		if err := os.WriteFile(filepath.Join(s.Dir(), name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := load(); err == nil || errors.Is(err, enroll.ErrNotJoined) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s damaged: %v", name, err)
		}
	}
}
