// Package relaytest starts a real relay on loopback sockets and writes tickets for it,
// for the tests of everything that goes through one. Only tests import it. A Fixture is
// safe for concurrent use.
package relaytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

// Fixture is a broker's keys, a relay's keys and the relay's fixed addresses; the relay
// itself may be stopped and started again on them.
type Fixture struct {
	Relay   *relay.Relay // the running one
	ID      ids.RelayID
	Key     ticket.PrivateKey
	Signer  *seal.Signer
	TCPAddr string
	UDPAddr string
	Log     *slog.Logger

	t    testing.TB
	cert tls.Certificate
	pool *x509.CertPool
	lim  relay.Limits
	stop func()
}

// New starts a relay; the test's end stops it.
func New(t testing.TB, lim relay.Limits) *Fixture {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	key, err := ticket.GenerateKey()
	must(t, err)
	f := &Fixture{t: t, ID: ids.New[ids.RelayID](), Key: key, Signer: seal.NewSigner(priv), lim: lim,
		Log: slog.New(slog.DiscardHandler), TCPAddr: "127.0.0.1:0", UDPAddr: "127.0.0.1:0"}
	f.cert, f.pool = certificate(t)
	f.Start()
	t.Cleanup(f.Stop)
	return f
}

// Start runs a fresh relay, with no memory of the one before, on the same addresses.
func (f *Fixture) Start() {
	f.t.Helper()
	r, err := relay.New(relay.Config{ID: f.ID, Key: f.Key, BrokerKeys: func() seal.Keys { return seal.NewKeys(f.Signer.Public()) }, Limits: f.lim, Log: f.Log})
	must(f.t, err)
	l, err := net.Listen("tcp", f.TCPAddr)
	must(f.t, err)
	pc, err := net.ListenPacket("udp", f.UDPAddr)
	must(f.t, err)
	f.Relay, f.TCPAddr, f.UDPAddr = r, l.Addr().String(), pc.LocalAddr().String()
	ctx, cancel := context.WithCancel(f.t.Context())
	var wg sync.WaitGroup
	conf := relay.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &f.cert, nil })
	wg.Go(func() { _ = r.ServeTCP(ctx, l, conf) })
	wg.Go(func() { _ = r.ServeUDP(ctx, pc.(*net.UDPConn)) })
	f.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// Stop ends the relay and waits for it.
func (f *Fixture) Stop() { f.stop() }

// Info is what the broker would tell a holder about the relay.
func (f *Fixture) Info() attach.RelayInfo {
	return attach.RelayInfo{ID: f.ID, TCP: []string{f.TCPAddr}, UDP: []string{f.UDPAddr}, TLS: &tls.Config{RootCAs: f.pool}}
}

// Attach is a configuration to attach to the relay.
func (f *Fixture) Attach() attach.Config { return attach.Config{Relay: f.Info(), Log: f.Log} }

// Client returns a ticket for a fresh link to the connector; edit may change it.
func (f *Fixture) Client(connector ticket.Handle, edit func(*ticket.Ticket)) attach.Ticket {
	f.t.Helper()
	return f.issue(ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: connector}, edit)
}

// Connector returns a ticket for the connector handle.
func (f *Fixture) Connector(h ticket.Handle, edit func(*ticket.Ticket)) attach.Ticket {
	f.t.Helper()
	return f.issue(ticket.Ticket{Role: ticket.RoleConnector, Handle: h}, edit)
}

func (f *Fixture) issue(t ticket.Ticket, edit func(*ticket.Ticket)) attach.Ticket {
	f.t.Helper()
	t.Relay, t.MACKey = f.ID, ticket.NewMACKey()
	t.NotBefore = time.Now().Add(-time.Second).Truncate(time.Second)
	t.Expires = t.NotBefore.Add(time.Hour)
	if edit != nil {
		edit(&t)
	}
	return f.Seal(t)
}

// Seal turns a ticket into what its holder gets.
func (f *Fixture) Seal(t ticket.Ticket) attach.Ticket {
	f.t.Helper()
	sealed, err := ticket.Seal(f.Key.Public(), f.Signer, t)
	must(f.t, err)
	return attach.Ticket{Sealed: sealed, Role: t.Role, Handle: t.Handle, MACKey: t.MACKey, Expires: t.Expires}
}

// Socket opens a UDP socket on loopback.
func Socket(t testing.TB) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	return pc.(*net.UDPConn)
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
