package link_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/carrier/quic"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/frame"
)

// udpRoad makes quic carriers over loopback sockets, which the test can break.
type udpRoad struct {
	mu   sync.Mutex // guards last
	last carrier.Carrier
}

// flap ends the present carrier without a word to the flows.
func (r *udpRoad) flap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil {
		go r.last.Close()
	}
}

func socket(t testing.TB) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// directPaths are the two ends of a path between two loopback sockets.
func directPaths(t testing.TB) (near, far quic.Path) {
	t.Helper()
	a, aAt := socket(t)
	b, bAt := socket(t)
	near, err := quic.NewDirect(a, bAt)
	if err != nil {
		t.Fatal(err)
	}
	far, err = quic.NewDirect(b, aAt)
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// quicDialer serves a fresh pair of sockets for every dial.
func (w *world) quicDialer(t *testing.T, r *udpRoad, creds *peer.Credentials) link.Dialer {
	return link.Dialer{Name: "quic", Kind: carrier.QUIC, Dial: func(ctx context.Context) (carrier.Carrier, error) {
		np, fp := directPaths(t)
		sc, err := peer.ServerConfig(peer.Config{Credentials: w.creds, Expect: peer.Anyone})
		if err != nil {
			return nil, err
		}
		w.serving.Go(func() {
			_ = quic.ServePath(w.ctx, fp, quic.Config{TLS: sc}, func(ctx context.Context, c *quic.Carrier) { _ = w.server.Serve(ctx, c) })
		})
		cc, err := peer.ClientConfig(peer.Config{Credentials: creds, Expect: peer.Exactly(w.creds.KeyID())})
		if err != nil {
			return nil, err
		}
		c, err := quic.Dial(ctx, np, quic.Config{TLS: cc})
		if err == nil {
			r.mu.Lock()
			r.last = c
			r.mu.Unlock()
		}
		return c, err
	}}
}

func TestTransferMovesBetweenQUICAndTLS(t *testing.T) {
	w := newWorld(t, link.Limits{})
	creds := newCredentials(t)
	udp, tcp := &udpRoad{}, &road{name: "tls"}
	c := w.client(creds, func(cfg *link.ClientConfig) {
		cfg.Dial = []link.Dialer{w.quicDialer(t, udp, creds), w.dialer(tcp, creds)}
	})
	present(t, c, "gnt_a", 1)
	if st := c.Status(); st.Carriers[0].Kind != carrier.QUIC {
		t.Logf("first carrier is %s", st.Carriers[0].Kind)
	}
	n := bulkSize() / 4
	transfer(t, w, c, 80, 1, n,
		mark{at: n / 5, do: udp.flap}, mark{at: 2 * n / 5, do: tcp.flap},
		mark{at: 3 * n / 5, do: udp.flap}, mark{at: 4 * n / 5, do: tcp.flap})
	if rec := w.handler.awaitClosed(t, 1)[0]; rec.Cause != frame.OK {
		t.Errorf("cause = %v", rec.Cause)
	}
	w.handler.app(80, packetEcho)
	p, err := c.OpenUDP(t.Context(), 1, 80)
	if err != nil {
		t.Fatal(err)
	}
	mustExchange(t, p, 10)
	mustExchange(t, p, 30000)
}
