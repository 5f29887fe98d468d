//go:build linux

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/localapi"
	localv1 "github.com/postern-zt/postern/proto/local/v1"
	"github.com/postern-zt/postern/test/netns"
)

// proxyAddr is where a client without a tunnel interface listens on its laptop.
const proxyAddr = "127.0.0.1:1080"

var proxyLine = regexp.MustCompile(`(SOCKS5 proxy on .*)`)

// client is one laptop's client.
type client struct {
	api     *localapi.Client
	carrier string
}

// startClients starts a client on each laptop.
func (p *product) startClients(t *testing.T) []path {
	t.Helper()
	paths := []path{p.startDaemon(t, laptopTLS), p.startDaemon(t, laptopQUIC)}
	if withProxy() {
		paths = append(paths, p.startProxy(t, laptopProxy, laptopTLS))
	}
	return paths
}

// withProxy adds a client without a tunnel interface: what interception costs is the
// difference.
func withProxy() bool { return os.Getenv("POSTERN_BENCH_PROXY") != "" }

// startDaemon starts a client with a tunnel interface and signs the person in.
func (p *product) startDaemon(t *testing.T, carrier string) path {
	t.Helper()
	h := p.net.laptops[carrier]
	state := filepath.Join(p.dir, "laptop-"+carrier)
	must(t, os.Mkdir(state, 0o700))
	resolv := filepath.Join(state, "resolv.conf") // a file of the bench's own
	must(t, os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644))
	socket := filepath.Join(state, "run", "local.sock")
	daemon := launch(t, h, []string{
		"POSTERN_CLIENT_STATE_DIR=" + state, "POSTERN_CLIENT_SOCKET=" + socket, "POSTERN_CLIENT_RESOLV_CONF=" + resolv,
		"POSTERN_CLIENT_DNS_BUS=none", "POSTERN_CLIENT_LOG_LEVEL=warn",
	}, "", p.bin.daemon, "run")
	netns.Wait(t, patience, "the daemon serves "+socket, func() bool { return exists(socket) })
	cli := launch(t, h, []string{"HOME=" + state, "POSTERN_SOCKET=" + socket}, "", p.bin.cli, "up", "--device-code", p.url)
	p.confirm(t, cli)
	c := p.newClient(t, socket, carrier)
	return path{
		name: carrier + tunRelay, host: h, addr: netip.AddrPortFrom(c.appAddr(t), appPort),
		pids: p.pids(daemon), check: c.check, via: carrier,
	}
}

// appAddr is the address that programs of this laptop have for the app.
func (c *client) appAddr(t *testing.T) netip.Addr {
	t.Helper()
	var addr netip.Addr
	netns.Wait(t, patience, "the app has an address", func() bool {
		resp, err := c.api.Apps(t.Context(), connect.NewRequest(&localv1.AppsRequest{}))
		if err != nil {
			return false
		}
		for _, a := range resp.Msg.Apps {
			for _, text := range a.Addresses {
				if got, err := netip.ParseAddr(text); err == nil && got.Is4() {
					addr = got
				}
			}
		}
		return addr.IsValid()
	})
	return addr
}

// startProxy starts a client without root's interface: programs come through SOCKS.
func (p *product) startProxy(t *testing.T, laptop, carrier string) path {
	t.Helper()
	h := p.net.laptops[laptop]
	state := filepath.Join(p.dir, "laptop-"+laptop)
	cli := launch(t, h, []string{"HOME=" + state, "POSTERN_STATE=" + state}, "", p.bin.cli, "proxy", "--listen", proxyAddr, "--device-code", p.url)
	p.confirm(t, cli)
	cli.await(t, proxyLine)
	c := p.newClient(t, filepath.Join(state, "run", "local.sock"), carrier)
	return path{
		name: carrier + proxyRelay, host: h, addr: addrPort(proxyAddr), socks: fmt.Sprintf("%s.%s:%d", appName, suffix, appPort),
		pids: p.pids(cli), check: c.check, via: carrier,
	}
}

func (p *product) newClient(t *testing.T, socket, carrier string) *client {
	t.Helper()
	c := &client{api: localapi.NewClient(socket), carrier: carrier}
	t.Cleanup(c.api.Close)
	return c
}

// pids are the programs that a path costs.
func (p *product) pids(client *program) map[string]int {
	return map[string]int{"client": client.pid(), "relay": p.broker.pid(), "connector": p.connector.pid()}
}

// check says why the link is not the one that the row is about, by the client's own word.
func (c *client) check() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := c.api.Status(ctx, connect.NewRequest(&localv1.StatusRequest{}))
	if err != nil {
		return err
	}
	if len(st.Msg.Links) != 1 {
		return fmt.Errorf("the client has %d links, want 1", len(st.Msg.Links))
	}
	l := st.Msg.Links[0]
	if l.Carrier != c.carrier || !strings.HasPrefix(l.Path, "relay ") {
		return fmt.Errorf("the link goes by %s over %s, want %s through the relay", l.Carrier, l.Path, c.carrier)
	}
	return nil
}

// warm opens connections until the link has the wanted carrier.
func warm(t *testing.T, p path) {
	t.Helper()
	var last error
	netns.Wait(t, patience, p.name+" is warm", func() bool {
		if last = p.host.Do(func() error {
			_, err := firstByte(p)
			return err
		}); last == nil && p.check != nil {
			last = p.check()
		}
		if last != nil {
			t.Logf("%s: not yet: %v", p.name, last)
		}
		return last == nil
	})
}
