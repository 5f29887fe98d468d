package relaynode_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/relaynode"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/netstack/relay/wire"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

func (w *world) dial(t *testing.T, addr string, tk attach.Ticket) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return attach.DialTCP(ctx, w.attach(addr), tk)
}

func (w *world) client(connector ticket.Handle) attach.Ticket {
	return w.issue(w.signer, ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: connector})
}

func TestRelaysTCPAndUDPOnOnePort(t *testing.T) {
	w := newWorld(t)
	n := w.run(w.join(), "127.0.0.1:0")
	n.connected(t)
	addr := n.Addr().String()
	c := w.connector(addr)
	tk := w.client(c)
	conn, err := w.dial(t, addr, tk)
	must(t, err)
	defer conn.Close()
	if err := say(conn, "through the relay"); err != nil {
		t.Error(err)
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	b, err := attach.BindUDP(t.Context(), w.attach(addr), socket, attach.Fixed(tk))
	if err != nil {
		t.Fatalf("UDP: %v", err)
	}
	b.Close()
}

func TestRefusesStrangersTickets(t *testing.T) {
	w := newWorld(t)
	n := w.run(w.join(), "127.0.0.1:0")
	n.connected(t)
	c := w.connector(n.Addr().String())
	_, priv, _ := ed25519.GenerateKey(nil)
	forged := w.issue(seal.NewSigner(priv), ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: c})
	if _, err := w.dial(t, n.Addr().String(), forged); !errors.Is(err, &attach.RefusedError{Code: wire.CodeTicket}) {
		t.Errorf("a forged ticket: %v", err)
	}
}

func TestTakesOnlyKeysOfThePinnedCA(t *testing.T) {
	w := newWorld(t)
	store := w.join()
	w.certs = newWorld(t).certs
	n := w.run(store, "127.0.0.1:0")
	n.connected(t)
	h := ticket.NewHandle()
	tk := w.issue(w.signer, ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: h})
	if _, err := w.dial(t, n.Addr().String(), tk); !errors.Is(err, &attach.RefusedError{Code: wire.CodeTicket}) {
		t.Errorf("a ticket without any accepted key: %v", err)
	}
}

func TestSpeaksNothingButTheRelay(t *testing.T) {
	w := newWorld(t)
	n := w.run(w.join(), "127.0.0.1:0")
	for _, protos := range [][]string{{control.ALPN}, {"h2", "http/1.1"}} {
		c, err := tls.Dial("tcp", n.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
		if err == nil {
			c.Close()
			t.Errorf("%v: the handshake succeeded", protos)
		}
	}
	old := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPN}, MaxVersion: tls.VersionTLS12}
	if c, err := tls.Dial("tcp", n.Addr().String(), old); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

// TestServesWithoutTheBroker: a broker that is away stalls nothing, and neither does a
// restart of the relay meanwhile.
func TestServesWithoutTheBroker(t *testing.T) {
	w := newWorld(t)
	store := w.join()
	n := w.run(store, "127.0.0.1:0")
	n.connected(t)
	addr := n.Addr().String()
	c := w.connector(addr)
	conn, err := w.dial(t, addr, w.client(c))
	must(t, err)
	defer conn.Close()
	w.stop()
	waitFor(t, func() bool { return !n.State().Connected })
	if err := say(conn, "still here"); err != nil {
		t.Errorf("the old flow: %v", err)
	}
	again, err := w.dial(t, addr, w.client(c))
	must(t, err)
	again.Close()

	n.stop()
	reopened, err := relaynode.Open(store.Dir())
	must(t, err)
	second := w.run(reopened, addr)
	if second.Addr().String() != addr {
		t.Errorf("address %v, want %s", second.Addr(), addr)
	}
	waitFor(t, func() bool { // until the connector has attached again by itself
		conn, err := w.dial(t, addr, w.client(c))
		if err != nil {
			return false
		}
		defer conn.Close()
		return say(conn, "after the restart") == nil
	})
	w.start()
	second.connected(t)
}

func TestCuts(t *testing.T) {
	w := newWorld(t)
	n := w.run(w.join(), "127.0.0.1:0")
	n.connected(t)
	addr := n.Addr().String()
	c := w.connector(addr)
	tk, other := w.client(c), w.client(c)
	conn, err := w.dial(t, addr, tk)
	must(t, err)
	defer conn.Close()
	spared, err := w.dial(t, addr, other)
	must(t, err)
	defer spared.Close()
	w.cut(&controlv1.Cut{Handles: []uint64{uint64(tk.Handle), 0, 1 << 60}})
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a cut link still carries bytes")
	}
	if err := say(spared, "not meant"); err != nil {
		t.Errorf("another link: %v", err)
	}

	// The broker comes back and repeats the cut: who returned with a right to it stays.
	back, err := w.dial(t, addr, tk)
	must(t, err)
	defer back.Close()
	w.stop()
	waitFor(t, func() bool { return !n.State().Connected })
	w.start()
	n.connected(t)
	last := w.client(c)
	mark, err := w.dial(t, addr, last)
	must(t, err)
	defer mark.Close()
	w.cut(&controlv1.Cut{Handles: []uint64{uint64(last.Handle)}}) // comes behind the repeated one
	if _, err := mark.Read(make([]byte, 1)); err == nil {
		t.Error("the second cut was not carried out")
	}
	if err := say(back, "came back"); err != nil {
		t.Errorf("a repeated cut hit: %v", err)
	}
}

// TestVoidCuts: a link on which no grant is left stays refused under its old ticket, also by
// a relay that has restarted and hears of it anew; a newer ticket opens it.
func TestVoidCuts(t *testing.T) {
	w := newWorld(t)
	store := w.join()
	n := w.run(store, "127.0.0.1:0")
	n.connected(t)
	addr := n.Addr().String()
	c := w.connector(addr)
	old, other := w.client(c), w.client(c)
	conn, err := w.dial(t, addr, old)
	must(t, err)
	defer conn.Close()
	w.cut(&controlv1.Cut{Handles: []uint64{uint64(old.Handle)}, Void: true})
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a cut link still carries bytes")
	}
	revoked := &attach.RefusedError{Code: wire.CodeRevoked}
	if _, err := w.dial(t, addr, old); !errors.Is(err, revoked) {
		t.Errorf("the old ticket: %v", err)
	}
	fresh := w.issue(w.signer, ticket.Ticket{
		Role: ticket.RoleClient, Handle: old.Handle, Connector: c, NotBefore: time.Now().Add(2 * time.Second).Truncate(time.Second),
	})
	again, err := w.dial(t, addr, fresh)
	must(t, err)
	defer again.Close()

	n.stop()
	reopened, err := relaynode.Open(store.Dir())
	must(t, err)
	w.run(reopened, addr).connected(t)
	waitFor(t, func() bool { // until the connector has attached and the news has come
		if conn, err := w.dial(t, addr, other); err != nil {
			return false
		} else if conn.Close() != nil {
			return false
		}
		conn, err := w.dial(t, addr, old)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, revoked)
	})
	back, err := w.dial(t, addr, fresh)
	must(t, err)
	defer back.Close()
	if err := say(back, "after the restart"); err != nil {
		t.Errorf("the newer ticket: %v", err)
	}
}

func TestCutHoldersVoidTickets(t *testing.T) {
	w := newWorld(t)
	n := w.run(w.join(), "127.0.0.1:0")
	n.connected(t)
	addr := n.Addr().String()
	c := w.connector(addr)
	holder := ids.KeyIDOf([]byte("stolen device"))
	tk := w.issue(w.signer, ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: c, Holder: holder})
	conn, err := w.dial(t, addr, tk)
	must(t, err)
	defer conn.Close()
	w.cut(&controlv1.Cut{Holders: [][]byte{{1, 2, 3}, holder[:]}})
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the holder's link still carries bytes")
	}
	if _, err := w.dial(t, addr, tk); !errors.Is(err, &attach.RefusedError{Code: wire.CodeRevoked}) {
		t.Errorf("the holder's ticket: %v", err)
	}
}

func TestJoinRefuses(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	good := relaynode.Join{URL: w.url(), Token: joinToken, Name: "relay", Addresses: []string{"relay.example:8444"}}
	cases := map[string]func(*relaynode.Join){
		"wrong token":    func(j *relaynode.Join) { j.Token = "guessed" },
		"another broker": func(j *relaynode.Join) { j.URL = other.Broker(w.addr).String() },
		"no pin":         func(j *relaynode.Join) { j.URL = "https://" + w.addr + "/" },
		"no address":     func(j *relaynode.Join) { j.Addresses = nil },
		"no port":        func(j *relaynode.Join) { j.Addresses = []string{"relay.example"} },
		"port zero":      func(j *relaynode.Join) { j.Addresses = []string{"relay.example:0"} },
		"any address":    func(j *relaynode.Join) { j.Addresses = []string{"0.0.0.0:8444"} },
	}
	for name, edit := range cases {
		s, err := relaynode.Open(t.TempDir())
		must(t, err)
		j := good
		edit(&j)
		if _, err := s.Join(t.Context(), j); err == nil || strings.Contains(err.Error(), j.Token) {
			t.Errorf("%s: Join = %v", name, err)
		}
		if _, err := s.Load(); !errors.Is(err, relaynode.ErrNotJoined) {
			t.Errorf("%s: a membership was stored: %v", name, err)
		}
		if _, err := relaynode.New(t.Context(), relaynode.Config{Store: s, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, relaynode.ErrNotJoined) {
			t.Errorf("%s: New = %v", name, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", good, good, good); strings.Contains(s, joinToken) {
		t.Errorf("the token shows: %s", s)
	}
}

func TestStoreKeepsIdentity(t *testing.T) {
	w := newWorld(t)
	s := w.join()
	first, err := s.Load()
	must(t, err)
	key, err := s.TicketKey()
	must(t, err)
	again, err := relaynode.Open(s.Dir())
	must(t, err)
	second, err := again.TicketKey()
	must(t, err)
	if key.Public().String() != second.Public().String() || w.hpke.String() != key.Public().String() {
		t.Error("the ticket key changed")
	}
	for _, name := range []string{"ticket.key", "relay.json", "identity.key"} {
		st, err := os.Stat(filepath.Join(s.Dir(), name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	cases := map[string]struct {
		url   string
		addrs []string
		ok    bool
	}{
		"nothing asked":    {"", nil, true},
		"the same":         {w.url(), first.Addresses, true},
		"another broker":   {control.Broker{Address: w.addr, Pin: ids.KeyIDOf([]byte("x"))}.String(), nil, false},
		"not a URL":        {"https://", nil, false},
		"another address":  {"", []string{"10.0.0.1:8444"}, false},
		"one address more": {w.url(), append([]string{"10.0.0.1:8444"}, first.Addresses...), false},
	}
	for name, c := range cases {
		if err := first.Same(c.url, c.addrs); (err == nil) != c.ok {
			t.Errorf("%s: Same = %v", name, err)
		}
	}
}

// TestDamagedFiles: what cannot be read is an error with the file's name, never a new
// identity.
func TestDamagedFiles(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"ticket.key", "relay.json"} {
		s := w.join()
		must(t, os.WriteFile(filepath.Join(s.Dir(), name), []byte("{"), 0o600))
		_, err := relaynode.New(t.Context(), relaynode.Config{Store: s, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: New = %v", name, err)
		}
	}
	s := w.join()
	must(t, os.WriteFile(filepath.Join(s.Dir(), "keys.json"), []byte("{"), 0o600))
	n := w.run(s, "127.0.0.1:0")
	n.connected(t) // keys come from the broker
}

func TestPortTaken(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, err = relaynode.New(t.Context(), relaynode.Config{Store: w.join(), Listen: l.Addr().String(), Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("New = %v", err)
	}
}

func TestReportsLoadAndDrops(t *testing.T) {
	w := newWorld(t)
	n := w.run(w.join(), "127.0.0.1:0")
	n.connected(t)
	c := w.connector(n.Addr().String())
	_, priv, _ := ed25519.GenerateKey(nil)
	forged := w.issue(seal.NewSigner(priv), ticket.Ticket{Role: ticket.RoleClient, Handle: ticket.NewHandle(), Connector: c})
	if _, err := w.dial(t, n.Addr().String(), forged); err == nil {
		t.Fatal("a forged ticket was served")
	}
	conn, err := w.dial(t, n.Addr().String(), w.client(c))
	must(t, err)
	defer conn.Close()
	must(t, n.ReportForTest(t.Context(), 7))
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.report; r.Links != 1 || r.Bytes != 7 || r.Drops["bad_signature"] != 1 {
		t.Errorf("report %v", r)
	}
}

// TestRenewsItsCertificate: the new one is stored, and shown to the next caller.
func TestRenewsItsCertificate(t *testing.T) {
	w := newWorld(t)
	s := w.join()
	m, err := s.Load()
	must(t, err)
	old := w.IssueFor("/relay/"+string(w.relay), s.Key().Public(), time.Now().Add(-50*time.Minute), time.Now().Add(10*time.Minute),
		x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	m.Chain = [][]byte{old.Raw, w.CA.Raw}
	must(t, s.Save(m))
	n := w.run(s, "127.0.0.1:0")
	waitFor(t, func() bool {
		m, err := s.Load()
		return err == nil && !bytes.Equal(m.Chain[0], old.Raw)
	})
	c, err := tls.Dial("tcp", n.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPN}})
	must(t, err)
	defer c.Close()
	if cs := c.ConnectionState(); bytes.Equal(cs.PeerCertificates[0].Raw, old.Raw) {
		t.Error("the old certificate is still shown")
	} else if err := control.VerifyServer(cs, w.Pin(), control.KindRelay, string(w.relay), time.Now()); err != nil {
		t.Error(err)
	}
}
