//go:build linux

package system

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-zt/postern/test/netns"
)

// Addresses of a network whose only way out is a proxy.
const (
	gateAddr   = "192.168.9.1"
	insideAddr = "192.168.9.2"
	proxyAddr  = gateAddr + ":3128"
)

// gate is an HTTP proxy that answers CONNECT, on a machine with a foot on either side.
type gate struct {
	on      *machine
	tunnels atomic.Int64
	work    sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// newGate starts the proxy; the test's end stops it.
func newGate(t *testing.T, on *machine) *gate {
	t.Helper()
	g := &gate{on: on}
	srv, l := &http.Server{Handler: g, ReadHeaderTimeout: patience}, on.Listen(proxyAddr)
	g.work.Go(func() { _ = srv.Serve(l) }) // always http.ErrServerClosed
	t.Cleanup(func() {
		_ = srv.Close() // nothing is left to lose
		g.mu.Lock()
		for _, c := range g.conns {
			_ = c.Close() // ends its copies
		}
		g.mu.Unlock()
		g.work.Wait()
	})
	return g
}

// ServeHTTP joins a client to the place that it names.
func (g *gate) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(rw, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	far, err := g.on.Dial(ctx, "tcp", r.Host)
	if err != nil {
		http.Error(rw, "nobody there", http.StatusBadGateway)
		return
	}
	rw.WriteHeader(http.StatusOK)
	near, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		_ = far.Close()
		return
	}
	_ = near.SetDeadline(time.Time{}) // ends with the test at the latest
	g.tunnels.Add(1)
	g.mu.Lock()
	g.conns = append(g.conns, near, far)
	g.mu.Unlock()
	pass := func(to, from net.Conn, read io.Reader) {
		_, _ = io.Copy(to, read) // its end is the connection's
		_, _ = to.Close(), from.Close()
	}
	g.work.Go(func() { pass(far, near, buffered) })
	g.work.Go(func() { pass(near, far, far) })
}

// TestTunnelThroughProxy has the daemon in a network that lets nothing out but an HTTP proxy:
// programs reach apps by name all the same, and not one packet tries another way.
func TestTunnelThroughProxy(t *testing.T) {
	w := netns.New(t)
	o := &office{t: t, broker: newMachine(t, w, "broker"), site: newMachine(t, w, "site"), laptop: newMachine(t, w, "laptop")}
	gateway := newMachine(t, w, "gate")
	internet := w.Switch("internet")
	for m, addr := range map[*machine]string{o.broker: brokerAddr, o.site: siteAddr, gateway: laptopAddr} {
		internet.Attach(m.Host, netip.PrefixFrom(netip.MustParseAddr(addr), 24))
	}
	for _, addr := range []string{wikiAddr, filesAddr, dbAddr, dnsAddr} {
		o.site.IP("addr", "add", addr+"/32", "dev", "lo")
	}
	// A way out is offered and leads nowhere: the gate does not route.
	iface, _ := w.Connect(o.laptop.Host, []netip.Prefix{netip.MustParsePrefix(insideAddr + "/24")}, gateway.Host, []netip.Prefix{netip.MustParsePrefix(gateAddr + "/24")})
	o.laptop.Route("default", netip.MustParseAddr(gateAddr))
	g := newGate(t, gateway)
	serveWiki(t, o.site, wikiAddr+":80")
	o.open()

	watch := o.laptop.Capture()
	root := o.laptop.with("HTTPS_PROXY=http://" + proxyAddr)
	root.start("posternd run", "")
	netns.Wait(t, patience, "the daemon answers", func() bool { return o.laptop.has("run/postern/client/local.sock") })
	ann := o.laptop.as(nobody)
	up := ann.start("postern up '"+o.url+"'", "")
	o.signIn(up)
	up.finish()
	testCurl(t, ann, "", curlRefused)
	o.carriedBy(t, ann, "tls")
	o.verifyAudit(t)
	if got := watch.Sent(iface); len(got) != 1 || got[netip.MustParseAddr(gateAddr)] == 0 {
		t.Errorf("packets went to %v, want %s only", got, gateAddr)
	}
	if watch.Frames("postern0") == 0 || g.tunnels.Load() == 0 {
		t.Errorf("%d packets through the tunnel interface, %d connections through the proxy", watch.Frames("postern0"), g.tunnels.Load())
	}
}
