//go:build linux

package bench

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

const (
	referencePackage = "golang.zx2c4.com/wireguard"
	// referenceSockets is where wireguard-go puts its control sockets, one per interface name.
	referenceSockets = "/var/run/wireguard/"
	referencePort    = 51820
	// referenceMTU is 1500 less the overhead of WireGuard over IPv6, as wg-quick sets it.
	referenceMTU = "1420"
	startTimeout = 15 * time.Second
)

// endpoint is one end of the reference tunnel.
type endpoint struct {
	host    *netns.Host
	role    string
	iface   string
	outside netip.Addr
	inside  netip.Prefix
	key     *ecdh.PrivateKey
	program *program
}

// startReference connects a laptop and the app's machine by wireguard-go, directly, with
// kernel TUN devices on both ends.
func startReference(t *testing.T, n *network, laptop *netns.Host, laptopAddr netip.Addr, bin string) path {
	t.Helper()
	tag := make([]byte, 3)
	_, _ = rand.Read(tag) // never fails
	a := &endpoint{host: laptop, role: "client", iface: "wgl" + hex.EncodeToString(tag), outside: laptopAddr, inside: netip.MustParsePrefix("10.99.0.1/24")}
	b := &endpoint{host: n.connector, role: "connector", iface: "wgc" + hex.EncodeToString(tag), outside: n.appAddr, inside: netip.MustParsePrefix("10.99.0.2/24")}
	for _, e := range []*endpoint{a, b} {
		e.start(t, bin)
	}
	a.peer(t, b)
	b.peer(t, a)
	return path{
		name: "wireguard-go", host: laptop, addr: netip.AddrPortFrom(b.inside.Addr(), appPort),
		pids: map[string]int{a.role: a.program.pid(), b.role: b.program.pid()},
	}
}

func (e *endpoint) start(t *testing.T, bin string) {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e.key = key
	e.program = launch(t, e.host, []string{"LOG_LEVEL=error"}, "", bin, "--foreground", e.iface)
	netns.Wait(t, startTimeout, "wireguard-go "+e.iface, func() bool {
		if e.program.ended() {
			t.Fatalf("wireguard-go ended: %s", e.program.out)
		}
		return e.control("get=1\n\n") == nil
	})
	e.host.IP("addr", "add", e.inside.String(), "dev", e.iface)
	e.host.IP("link", "set", e.iface, "mtu", referenceMTU, "up")
	pinRoute(e.host, e.iface, e.inside)
}

func (e *endpoint) peer(t *testing.T, other *endpoint) {
	t.Helper()
	err := e.control(fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=%s:%d\nallowed_ip=%s\n\n",
		e.key.Bytes(), referencePort, other.key.PublicKey().Bytes(), other.outside, referencePort, netip.PrefixFrom(other.inside.Addr(), 32)))
	if err != nil {
		t.Fatalf("configure wireguard-go: %v", err)
	}
}

// control sends one request over the control socket of wireguard-go.
func (e *endpoint) control(request string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", referenceSockets+e.iface+".sock")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(request)); err != nil {
		return err
	}
	for s := bufio.NewScanner(c); s.Scan(); {
		if code, ok := strings.CutPrefix(s.Text(), "errno="); ok {
			if code != "0" {
				return fmt.Errorf("wireguard-go answers errno %s", code)
			}
			return nil
		}
	}
	return fmt.Errorf("wireguard-go gave no answer")
}
