package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/client/proxy"
	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/paths"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestProgramsAreToldTheTruth(t *testing.T) {
	denied := &tunnels.DeniedError{Receipt: &controlv1.Receipt{Id: "K7M2-Q4TX"}}
	for _, c := range []struct {
		err   error
		want  session.Outcome
		reply proxy.Reply
		code  connect.Code
	}{
		{denied, session.NotAllowed, proxy.NotAllowed, connect.CodePermissionDenied},
		{errors.New("anything"), session.NotAllowed, proxy.NotAllowed, connect.CodeUnknown},
		{client.ErrNotSignedIn, session.NotAllowed, proxy.NotAllowed, connect.CodeFailedPrecondition},
		{frame.Refused.Err(), session.Refused, proxy.ConnectionRefused, connect.CodeAborted},
		{frame.Timeout.Err(), session.TimedOut, proxy.TTLExpired, connect.CodeAborted},
		{frame.Revoked.Err(), session.NotAllowed, proxy.NotAllowed, connect.CodeAborted},
		{fmt.Errorf("x: %w", tunnels.ErrBroker), session.Unreachable, proxy.HostUnreachable, connect.CodeUnavailable},
		{fmt.Errorf("x: %w", tunnels.ErrNotGiven), session.Unreachable, proxy.HostUnreachable, connect.CodeUnavailable},
		{tunnels.ErrRemoved, session.NotAllowed, proxy.NotAllowed, connect.CodeUnknown},
		{tunnels.ErrNoConnector, session.Unreachable, proxy.HostUnreachable, connect.CodeAborted},
		{tunnels.ErrUnknownApp, session.Unreachable, proxy.HostUnreachable, connect.CodeNotFound},
		{fmt.Errorf("%w: %w", link.ErrNoCarrier, context.DeadlineExceeded), session.Unreachable, proxy.HostUnreachable, connect.CodeAborted},
	} {
		code, _ := client.Backend{}.Code(c.err)
		if got := client.OutcomeOf(c.err); got != c.want || client.SOCKSReply(c.err) != c.reply || code != c.code {
			t.Errorf("%v: %v, reply %d, code %v", c.err, got, client.SOCKSReply(c.err), code)
		}
	}
}

func TestProxySettingLeavesQUICOut(t *testing.T) {
	if d, tlsOnly := client.Dialing(&httpproxy.Config{}); d != nil || tlsOnly {
		t.Error("no proxy is one")
	}
	if d, tlsOnly := client.Dialing(&httpproxy.Config{HTTPSProxy: "http://user:secret@10.0.0.9:3128"}); d == nil || !tlsOnly {
		t.Error("the proxy is not used")
	}
	cfg := client.AgentConfig{Proxy: &httpproxy.Config{HTTPSProxy: "http://user:secret@10.0.0.9:3128"}}
	if strings.Contains(cfg.String(), "secret") {
		t.Error("the proxy's password is printed")
	}
}

func TestDaemonConfigNamesTheField(t *testing.T) {
	good := client.DefaultDaemonConfig(paths.Set{State: "/s", Socket: "/r/s"})
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(c *client.DaemonConfig){
		"state_dir": func(c *client.DaemonConfig) { c.StateDir = "" },
		"socket":    func(c *client.DaemonConfig) { c.Socket = "" },
		"interface": func(c *client.DaemonConfig) { c.Interface = "../../x" },
		"log_level": func(c *client.DaemonConfig) { c.LogLevel = "loud" },
	} {
		bad := good
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestOneProcessPerDevice(t *testing.T) {
	dir := t.TempDir()
	cfg := client.AgentConfig{
		Paths:   paths.Set{State: filepath.Join(dir, "s"), Runtime: filepath.Join(dir, "r"), Socket: filepath.Join(dir, "r", "l")},
		Version: "test", Log: slog.New(slog.DiscardHandler),
	}
	var second error
	first := client.RunAgent(t.Context(), cfg, func(ctx context.Context, c *client.Client) error {
		second = client.RunAgent(ctx, cfg, func(context.Context, *client.Client) error { return nil })
		_, err := c.OpenTCP(ctx, "wiki", 80)
		return err
	})
	if errors.Is(first, errors.ErrUnsupported) {
		t.Skip(first)
	}
	if !errors.Is(first, client.ErrNotSignedIn) || !errors.Is(second, ipc.ErrInUse) {
		t.Errorf("first %v, second %v", first, second)
	}
}

func TestOtherUsersAreNotAdmitted(t *testing.T) {
	admit := client.AdmitUser(1000)
	if err := admit(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")); err == nil {
		if runtime.GOOS == "linux" {
			t.Fatal("a program whose owner nobody knows was admitted")
		}
		t.Skip("this system does not tell whose socket it is")
	}
}
