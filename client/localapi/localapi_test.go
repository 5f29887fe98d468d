package localapi_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/client/tunnels/tunnelstest"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/platform/ipc"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var receipt = &controlv1.Receipt{Id: "K7M2-Q4TX", Reason: "No rule.", Remedy: "Ask.", AppName: "payroll"}

// backend opens the wiki and denies everything else.
type backend struct{ t *testing.T }

func (b backend) Up(_ context.Context, caller ipc.Peer, _ *localv1.UpRequest, send func(*localv1.UpEvent) error) error {
	if caller.UID != uint32(os.Getuid()) {
		return errors.New("the caller is somebody else")
	}
	return send(&localv1.UpEvent{Stage: "ready"})
}
func (backend) Down(context.Context) error   { return nil }
func (backend) Logout(context.Context) error { return nil }
func (backend) Status(context.Context) *localv1.StatusResponse {
	return &localv1.StatusResponse{State: "up"}
}
func (backend) Apps(context.Context) (*localv1.AppsResponse, error) {
	return &localv1.AppsResponse{Apps: []*localv1.App{{Name: "wiki"}}}, nil
}
func (backend) Why(context.Context, string) (*localv1.WhyResponse, error) {
	return &localv1.WhyResponse{}, nil
}
func (backend) Ping(context.Context, string) (*localv1.PingResponse, error) {
	return nil, &tunnels.DeniedError{Receipt: receipt}
}
func (b backend) OpenTCP(_ context.Context, app string, port uint16) (*flow.Flow, error) {
	switch {
	case app == "wiki" && port == 80:
		return tunnelstest.Echo(b.t), nil
	case app == "wiki":
		return nil, tunnels.ErrNoConnector
	default:
		return nil, &tunnels.DeniedError{Receipt: receipt}
	}
}
func (backend) Code(err error) (connect.Code, string) {
	if errors.Is(err, tunnels.ErrNoConnector) {
		return connect.CodeAborted, err.Error()
	}
	return connect.CodePermissionDenied, err.Error()
}

func serve(t *testing.T, gate localapi.Gate) *localapi.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := ipc.Listen(t.Context(), path, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := localapi.New(localapi.Config{Listener: l, Backend: backend{t}, Gate: gate, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c := localapi.NewClient(path)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func own() localapi.Gate { return localapi.OwnerOnly(uint32(os.Getuid())) }

func TestOwnerIsServed(t *testing.T) {
	c := serve(t, own())
	st, err := c.Status(t.Context(), connect.NewRequest(&localv1.StatusRequest{}))
	if err != nil || st.Msg.State != "up" {
		t.Fatalf("Status = %v, %v", st, err)
	}
	up, err := c.Up(t.Context(), connect.NewRequest(&localv1.UpRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	if !up.Receive() || up.Msg().Stage != "ready" {
		t.Errorf("Up = %v, %v", up.Msg(), up.Err())
	}
}

func TestOtherUserIsRefused(t *testing.T) {
	c := serve(t, func(ipc.Peer, localapi.Access) error { return errors.New("not yours") })
	calls := map[string]func() error{
		"status": func() error {
			_, err := c.Status(t.Context(), connect.NewRequest(&localv1.StatusRequest{}))
			return err
		},
		"apps": func() error {
			_, err := c.Apps(t.Context(), connect.NewRequest(&localv1.AppsRequest{}))
			return err
		},
		"down": func() error {
			_, err := c.Down(t.Context(), connect.NewRequest(&localv1.DownRequest{}))
			return err
		},
		"logout": func() error {
			_, err := c.Logout(t.Context(), connect.NewRequest(&localv1.LogoutRequest{}))
			return err
		},
		"up": func() error {
			s, err := c.Up(t.Context(), connect.NewRequest(&localv1.UpRequest{}))
			if err != nil {
				return err
			}
			defer s.Close()
			s.Receive()
			return s.Err()
		},
		"stream": func() error {
			conn, err := c.OpenTCP(t.Context(), "wiki", 80)
			if err == nil {
				conn.Close()
			}
			return err
		},
	}
	for name, call := range calls {
		if err := call(); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDenialCarriesItsReceipt(t *testing.T) {
	c := serve(t, own())
	_, ping := c.Ping(t.Context(), connect.NewRequest(&localv1.PingRequest{App: "payroll"}))
	_, stream := c.OpenTCP(t.Context(), "payroll", 80)
	for name, err := range map[string]error{"ping": ping, "stream": stream} {
		r, ok := localapi.Denied(err)
		if !ok || r.Id != receipt.Id || r.Remedy != receipt.Remedy {
			t.Errorf("%s: %v, receipt %v", name, err, r)
		}
	}
	if _, err := c.OpenTCP(t.Context(), "wiki", 81); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("no connector: %v", err)
	}
}

func TestStreamJoinsTheApp(t *testing.T) {
	c := serve(t, own())
	conn, err := c.OpenTCP(t.Context(), "wiki", 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestServesTellsWhetherSomebodyIsThere(t *testing.T) {
	if localapi.Serves(t.Context(), filepath.Join(t.TempDir(), "none")) {
		t.Error("nobody is there")
	}
}
