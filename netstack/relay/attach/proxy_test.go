package attach_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http/httpproxy"

	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/relaytest"
	"github.com/postern-zt/postern/proto/ticket"
)

const password = "s3cr3t-pass"

// relayName is proxied, unlike loopback addresses; the proxy alone knows where it is.
const relayName = "relay.example:443"

// proxy knows CONNECT, one user and one name.
type proxy struct {
	addr    string
	status  string
	relay   string
	tunnels atomic.Int32
}

func startProxy(t testing.TB, status, relay string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String(), status: status, relay: relay}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return p
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	status := p.status
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:"+password))
	if req.Method != http.MethodConnect || req.Host != relayName || req.Header.Get("Proxy-Authorization") != want {
		status = "407 Proxy Authentication Required"
	}
	fmt.Fprintf(c, "HTTP/1.1 %s\r\nX-Filler: %s\r\n\r\n", status, strings.Repeat("x", 2000))
	if !strings.HasPrefix(status, "200") {
		return
	}
	up, err := net.Dial("tcp", p.relay)
	if err != nil {
		return
	}
	p.tunnels.Add(1)
	defer up.Close()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(up, br); _ = up.(*net.TCPConn).CloseWrite() })
	wg.Go(func() { _, _ = io.Copy(c, up); _ = c.(*net.TCPConn).CloseWrite() })
	wg.Wait()
}

func TestProxyCarriesBothSides(t *testing.T) {
	f := relaytest.New(t, relay.Limits{})
	p := startProxy(t, "200 OK", f.TCPAddr)
	cfg := f.Attach()
	cfg.Relay.TCP, cfg.Relay.TLS.ServerName = []string{relayName}, "127.0.0.1"
	cfg.Dialer = attach.NewProxyDialer(&httpproxy.Config{HTTPSProxy: "http://ann:" + password + "@" + p.addr}, nil, nil)
	c := ticket.NewHandle()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = attach.Serve(ctx, cfg, attach.Fixed(f.Connector(c, nil)), echo) })
	conn, err := attach.DialTCP(withTimeout(t), cfg, f.Client(c, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	roundTrip(t, conn)
	if n := p.tunnels.Load(); n != 3 { // client, control connection, answer
		t.Errorf("%d connections went through the proxy, want 3", n)
	}
}

func TestProxyRefusalHidesThePassword(t *testing.T) {
	addr := startProxy(t, "403 Forbidden", "").addr
	for name, proxyURL := range map[string]string{
		"refused": "http://ann:" + password + "@" + addr, "wrong user": "http://bob:" + password + "@" + addr,
		"not a url": "http://ann:" + password + "@[::1", "scheme": "socks5://ann:" + password + "@" + addr,
		"nobody there": "http://ann:" + password + "@127.0.0.1:1",
	} {
		d := attach.NewProxyDialer(&httpproxy.Config{HTTPSProxy: proxyURL}, nil, nil)
		_, err := d.DialContext(withTimeout(t), "tcp", relayName)
		if err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("%s: DialContext = %v", name, err)
		}
		var refused *attach.ProxyError
		if name == "refused" && (!errors.As(err, &refused) || refused.Status != http.StatusForbidden) {
			t.Errorf("refused: %v", err)
		}
	}
}
