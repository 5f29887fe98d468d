package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/client/proxy"
	"github.com/postern-zt/postern/client/tunnels/tunnelstest"
	"github.com/postern-zt/postern/netstack/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errDenied  = errors.New("denied")
	errRefused = errors.New("refused")
)

// opener knows one app.
type opener struct{ t *testing.T }

// OpenTCP opens the wiki and nothing else.
func (o opener) OpenTCP(_ context.Context, host string, port uint16) (*flow.Flow, error) {
	switch {
	case host == "wiki.corp.internal" && port == 80:
		return tunnelstest.Echo(o.t), nil
	case host == "wiki.corp.internal":
		return nil, errRefused
	default:
		return nil, errDenied
	}
}

// OpenUDP has nothing.
func (o opener) OpenUDP(context.Context, string, uint16) (*flow.Packets, error) {
	return nil, errDenied
}

func reply(err error) proxy.Reply {
	if errors.Is(err, errRefused) {
		return proxy.ConnectionRefused
	}
	return proxy.NotAllowed
}

func serve(t *testing.T, admit func(program, proxy netip.AddrPort) error) string {
	t.Helper()
	s, err := proxy.Listen(t.Context(), proxy.Config{
		Listen: "127.0.0.1:0", Opener: opener{t}, Reply: reply, Admit: admit, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Addr().String()
}

// ask greets and sends one request; it returns the reply code.
func ask(t *testing.T, addr, request string) (net.Conn, byte) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "\x05\x01\x00"+request); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatalf("no answer to %q: %v", request, err)
	}
	if !bytes.HasPrefix(answer, []byte{5, 0, 5}) {
		t.Fatalf("answer %v", answer)
	}
	return conn, answer[3]
}

func name(host string, port byte) string {
	return "\x05\x01\x00\x03" + string(rune(len(host))) + host + "\x00" + string([]byte{port})
}

func TestConnect(t *testing.T) {
	addr := serve(t, nil)
	conn, code := ask(t, addr, name("wiki.corp.internal", 80))
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestRefusalsAreTrue(t *testing.T) {
	addr := serve(t, nil)
	for request, want := range map[string]proxy.Reply{
		name("payroll.corp.internal", 80):               proxy.NotAllowed,
		name("example.com", 80):                         proxy.NotAllowed,
		name("wiki.corp.internal", 81):                  proxy.ConnectionRefused,
		name("10.0.0.1", 80):                            proxy.NotAllowed,
		"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50":      proxy.NotAllowed,
		"\x05\x02\x00\x01\x0a\x00\x00\x01\x00\x50":      proxy.CommandNotSupported,
		"\x05\x01\x00\x04" + strings.Repeat("\x01", 18): proxy.NotAllowed,
	} {
		if _, code := ask(t, addr, request); code != byte(want) {
			t.Errorf("%q: reply %d, want %d", request, code, want)
		}
	}
}

func TestOtherUserIsNotAdmitted(t *testing.T) {
	addr := serve(t, func(netip.AddrPort, netip.AddrPort) error { return errDenied })
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); len(b) != 0 {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestListensOnLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:1080", "example.com:1080", "1080"} {
		s, err := proxy.Listen(t.Context(), proxy.Config{Listen: addr, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			s.Close()
			t.Errorf("listens on %s", addr)
		}
	}
}
