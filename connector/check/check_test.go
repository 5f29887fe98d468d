package check_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/connector/check"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
	"github.com/postern-zt/postern/netstack/relay/attach"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hello is a broker whose clock is off.
type hello struct {
	controlv1connect.UnimplementedEnrollServiceHandler
	off time.Duration
}

func (h hello) Hello(context.Context, *connect.Request[controlv1.HelloRequest]) (*connect.Response[controlv1.HelloResponse], error) {
	return connect.NewResponse(&controlv1.HelloResponse{TimeMs: time.Now().Add(h.off).UnixMilli()}), nil
}

func broker(t *testing.T, off time.Duration) control.Broker {
	t.Helper()
	a := controltest.New(t)
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewEnrollServiceHandler(hello{off: off}))
	return a.Broker(a.Serve("", mux).Addr)
}

// run returns all results; a failing check ends with exactly one fix.
func run(t *testing.T, cfg check.Config) []check.Result {
	t.Helper()
	var got []check.Result
	passed := check.Run(t.Context(), cfg, func(r check.Result) { got = append(got, r) })
	for i, r := range got {
		last := i == len(got)-1
		if (r.State == check.Fail) != (r.Fix != "") || r.State == check.Fail && !last || r.Text == "" {
			t.Errorf("step %d of %d: %+v", i, len(got), r)
		}
	}
	if last := got[len(got)-1]; passed == (last.State == check.Fail) {
		t.Errorf("Run = %v after %+v", passed, last)
	}
	return got
}

func states(list []check.Result) []string {
	var out []string
	for _, r := range list {
		out = append(out, r.Step+" "+string(r.State))
	}
	return out
}

func TestBeforeTheJoin(t *testing.T) {
	got := states(run(t, check.Config{Broker: broker(t, 0), Files: 65536}))
	want := []string{"name ok", "proxy ok", "tcp ok", "interception ok", "clock ok", "files ok", "membership warn", "udp warn"}
	if !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
}

// listening is an address where something other than a broker is.
func listening(t *testing.T, conf *tls.Config, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func TestFirstFailureOfTheNetwork(t *testing.T) {
	good := broker(t, 0)
	firewall := httptest.NewUnstartedServer(nil) // for its certificate
	firewall.TLS = &tls.Config{NextProtos: []string{control.ALPN}}
	firewall.StartTLS()
	defer firewall.Close()
	shake := func(c net.Conn) { _ = c.(*tls.Conn).Handshake() } // the check's side is judged
	middle := listening(t, firewall.TLS, shake)
	plain := listening(t, nil, func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 403 Forbidden\r\n\r\n")) })
	closed := listening(t, nil, func(net.Conn) {})
	gone, _ := net.Listen("tcp", "127.0.0.1:0")
	gone.Close()
	other := good
	other.Pin = controltest.New(t).Pin()

	at := func(addr string) control.Broker { return control.Broker{Address: addr, Pin: good.Pin} }
	for name, c := range map[string]struct {
		cfg        check.Config
		step, text string
	}{
		"name":          {check.Config{Broker: at("nowhere.invalid:443")}, "name", "not found"},
		"refused":       {check.Config{Broker: at(gone.Addr().String())}, "tcp", "refuses"},
		"interception":  {check.Config{Broker: at(middle)}, "interception", "Acme Co"},
		"no TLS":        {check.Config{Broker: at(plain)}, "interception", "TLS"},
		"cut":           {check.Config{Broker: at(closed)}, "interception", "TLS"},
		"another CA":    {check.Config{Broker: other}, "interception", "pinned"},
		"clock behind":  {check.Config{Broker: good, Now: func() time.Time { return time.Now().Add(-time.Hour) }}, "clock", "clock"},
		"clock off":     {check.Config{Broker: broker(t, 6*time.Minute)}, "clock", "off the broker"},
		"no files":      {check.Config{Broker: good, Files: 100}, "files", "100"},
		"removed":       {joined(good, check.Site{}, controltest.Heard(connect.CodePermissionDenied, controlv1.Reason_REASON_REMOVED, "x")), "membership", "has removed"},
		"blocked":       {joined(good, check.Site{}, connect.NewError(connect.CodePermissionDenied, errors.New("x"))), "membership", "blocked"},
		"not accepted":  {joined(good, check.Site{}, connect.NewError(connect.CodeUnauthenticated, errors.New("x"))), "membership", "certificate"},
		"silent broker": {joined(good, check.Site{}, context.DeadlineExceeded), "membership", "in time"},
	} {
		got := run(t, c.cfg)
		last := got[len(got)-1]
		if last.State != check.Fail || last.Step != c.step || !strings.Contains(last.Text, c.text) {
			t.Errorf("%s: %+v, want %s to fail with %q", name, last, c.step, c.text)
		}
	}
}

func TestClockWarns(t *testing.T) {
	got := run(t, check.Config{Broker: broker(t, 4*time.Minute)})
	if i := slices.IndexFunc(got, func(r check.Result) bool { return r.Step == "clock" }); i < 0 || got[i].State != check.Warn {
		t.Errorf("clock four minutes off: %+v", got)
	}
}

// joined is a member whose broker wants site of it.
func joined(b control.Broker, site check.Site, err error) check.Config {
	return check.Config{Broker: b, Files: 65536, Connector: "con_1", Site: func(context.Context) (check.Site, error) { return site, err }}
}

func TestSite(t *testing.T) {
	app := listening(t, nil, func(net.Conn) {})
	gone, _ := net.Listen("tcp", "127.0.0.1:0")
	gone.Close()
	b := broker(t, 0)
	tcp, udp := check.Relay{ID: "rly_1", Transport: "tcp", Up: true}, check.Relay{ID: "rly_1", Transport: "udp", Up: true}
	down := func(r check.Relay) check.Relay { r.Up, r.Problem = false, "no answer"; return r }
	wiki := check.Target{App: "wiki", Network: "tcp", Address: app}
	for name, c := range map[string]struct {
		site check.Site
		want []string
	}{
		"all is well":     {check.Site{Relays: []check.Relay{tcp, udp}, Targets: []check.Target{wiki}}, []string{"relay tcp ok", "udp ok", "target ok"}},
		"no relay":        {check.Site{}, []string{"relay tcp fail"}},
		"relay away":      {check.Site{Relays: []check.Relay{down(tcp), udp}}, []string{"relay tcp fail"}},
		"udp blocked":     {check.Site{Relays: []check.Relay{tcp, down(udp)}}, []string{"relay tcp ok", "udp warn"}},
		"one of two away": {check.Site{Relays: []check.Relay{tcp, udp, down(tcp), down(udp)}}, []string{"relay tcp warn", "udp warn"}},
		"app away": {check.Site{Relays: []check.Relay{tcp, udp}, Targets: []check.Target{
			wiki, {App: "payroll", Network: "tcp", Address: gone.Addr().String()}, wiki}}, []string{"relay tcp ok", "udp ok", "target ok", "target fail"}},
		"app's name unknown": {check.Site{Relays: []check.Relay{tcp, udp}, Targets: []check.Target{
			{App: "payroll", Network: "tcp", Address: "nowhere.invalid:80"}}}, []string{"relay tcp ok", "udp ok", "target fail"}},
	} {
		got := states(run(t, joined(b, c.site, nil)))
		if got = got[7:]; !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestProxy(t *testing.T) {
	b := broker(t, 0)
	answers := func(head string) string {
		return listening(t, nil, func(c net.Conn) {
			buf := make([]byte, 4096)
			_, _ = c.Read(buf) // the CONNECT
			_, _ = c.Write([]byte(head))
		})
	}
	for name, c := range map[string]struct{ proxy, want string }{
		"wants a password": {answers("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), "user"},
		"refuses":          {answers("HTTP/1.1 403 Forbidden\r\n\r\n"), "403"},
		"is no proxy":      {answers("SSH-2.0\r\n\r\n"), "cannot be used"},
	} {
		d := attach.NewProxyDialer(&httpproxy.Config{HTTPSProxy: "http://" + c.proxy}, nil, nil)
		cfg := check.Config{Broker: control.Broker{Address: "broker.invalid:443", Pin: b.Pin}, Dialer: d, Proxy: c.proxy}
		got := run(t, cfg)
		if last := got[len(got)-1]; last.Step != "proxy" || !strings.Contains(last.Text, c.want) {
			t.Errorf("%s: %+v", name, last)
		}
	}
}

// TestBlockedNamesTheWayBack: the fix is a command that an administrator can type.
func TestBlockedNamesTheWayBack(t *testing.T) {
	cfg := joined(broker(t, 0), check.Site{}, connect.NewError(connect.CodePermissionDenied, errors.New("x")))
	var last check.Result
	check.Run(t.Context(), cfg, func(r check.Result) { last = r })
	if want := "ask an administrator: postern admin connector unblock NAME, or join again"; last.Fix != want {
		t.Errorf("%s: fix %q, want %q", last.Step, last.Fix, want)
	}
}
