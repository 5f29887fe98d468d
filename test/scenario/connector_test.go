package scenario

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector"
	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/netstack/control"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// drainTime is how long flows may go on after a connector was told to end.
const drainTime = 100 * time.Millisecond

// site is a connector that has joined, running or not.
type site struct {
	w     *world
	name  string
	store *enroll.Store
	net   *partition
	conn  *connector.Connector
	proc  *process
}

// connector joins a connector with a token and starts it.
func (w *world) connector(name, token string) *site {
	w.t.Helper()
	store, err := enroll.Open(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	s := &site{w: w, name: name, store: store, net: newPartition()}
	_, _, err = store.Join(w.ctx(), enroll.Join{URL: w.broker.URL(), Token: token, Name: name, Version: version, Dialer: s.net})
	if err != nil {
		w.t.Fatalf("join %s: %v", name, err)
	}
	s.start()
	s.await()
	return s
}

// start starts the connector, for the first time or again.
func (s *site) start() {
	s.w.t.Helper()
	c, err := connector.New(connector.Config{
		Store: s.store, Version: version, Dialer: s.net, Drain: drainTime, Log: s.w.log.With("role", s.name),
	})
	if err != nil {
		s.w.t.Fatalf("start %s: %v", s.name, err)
	}
	s.conn, s.proc = c, start(s.w.t, s.name, c.Run)
}

func (s *site) stop() {
	s.w.t.Helper()
	if err := s.proc.stop(); err != nil {
		s.w.t.Fatalf("%s ended with %v", s.name, err)
	}
}

// await waits until the connector stands at the broker and at every relay.
func (s *site) await() {
	s.w.t.Helper()
	eventually(s.w.t, s.name+" serves", func() bool {
		r := s.conn.Report()
		up := 0
		for _, p := range r.Paths {
			if p.State == "up" {
				up++
			}
		}
		return up > 0 && up == len(r.Paths) && s.conn.Live()
	})
}

// id is the connector's row.
func (s *site) row() *adminv1.Connector {
	s.w.t.Helper()
	resp, err := s.w.admin.connectors.ListConnectors(s.w.ctx(), connect.NewRequest(&adminv1.ListConnectorsRequest{}))
	for _, c := range must(s.w.t, resp, err).Connectors {
		if c.Name == s.name {
			return c
		}
	}
	s.w.t.Fatalf("the broker does not know %s", s.name)
	return nil
}

// errPartitioned is what a connector sees of the broker's control plane while it is cut off.
var errPartitioned = errors.New("network is partitioned")

// partition dials; while it is cut it lets no control connection through, and lets all
// others be. Control connections are told apart by the ALPN in their first bytes.
type partition struct {
	mu   sync.Mutex // guards the fields below
	cut  bool
	open map[*partitioned]bool
}

func newPartition() *partition { return &partition{open: map[*partitioned]bool{}} }

// DialContext implements control.Dialer.
func (p *partition) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &partitioned{Conn: c, p: p}, nil
}

// set cuts the control plane off, or heals it.
func (p *partition) set(cut bool) {
	p.mu.Lock()
	p.cut = cut
	var closing []*partitioned
	if cut {
		for c := range p.open {
			closing = append(closing, c)
		}
	}
	p.mu.Unlock()
	for _, c := range closing {
		c.Conn.Close()
	}
}

// partitioned is one connection of a partition.
type partitioned struct {
	net.Conn
	p     *partition
	first sync.Once
	err   error
}

func (c *partitioned) Write(b []byte) (int, error) {
	c.first.Do(func() { c.err = c.p.classify(c, b) })
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Write(b)
}

func (p *partition) classify(c *partitioned, hello []byte) error {
	if !bytes.Contains(hello, []byte(control.ALPN)) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		c.Conn.Close()
		return errPartitioned
	}
	p.open[c] = true
	return nil
}

func (c *partitioned) Close() error {
	c.p.mu.Lock()
	delete(c.p.open, c)
	c.p.mu.Unlock()
	return c.Conn.Close()
}
