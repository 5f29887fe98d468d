package scenario

import (
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector"
	"github.com/postern-zt/postern/connector/enroll"
	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/frame"
)

// clocks are the clocks of one machine, off by what the story says.
type clocks struct {
	mu         sync.Mutex // guards the fields below
	wall, boot time.Duration
}

func (c *clocks) now() clock.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := clock.Now()
	return clock.Time{Wall: t.Wall.Add(c.wall), Boot: t.Boot + c.boot}
}

// set moves the clocks to this far ahead of the right time.
func (c *clocks) set(wall, boot time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.boot = wall, boot
}

// joined joins a connector and does not start it.
func (w *world) joined(name, token string) *site {
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
	return s
}

// startWith starts a joined connector with another configuration.
func (s *site) startWith(change func(*connector.Config)) {
	s.w.t.Helper()
	cfg := connector.Config{
		Store: s.store, Version: version, Dialer: s.net, Drain: drainTime, Log: s.w.log.With("role", s.name),
	}
	change(&cfg)
	c, err := connector.New(cfg)
	if err != nil {
		s.w.t.Fatalf("start %s: %v", s.name, err)
	}
	s.conn, s.proc = c, start(s.w.t, s.name, c.Run)
}

// wikiWorld is the smallest world in which something can be reached: one app that ann may
// use, her device, and a connector that has joined and stands still.
func wikiWorld(t *testing.T) (*world, *site, *device, *app) {
	t.Helper()
	wiki := echo(t)
	w := newWorld(t, "ann")
	s := w.joined("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	return w, s, w.device("ann", "ann-laptop"), wiki
}

// TestFaultClocks: a connector whose clock is a few minutes off works and knows it; one that
// is an hour off does not work, says so, and comes to work when the clock is set.
func TestFaultClocks(t *testing.T) {
	w, s, d, wiki := wikiWorld(t)
	for name, off := range map[string]time.Duration{"4 minutes ahead": 4 * time.Minute, "4 minutes behind": -4 * time.Minute, "right": 0} {
		w.run(name, func(t *testing.T) {
			c := &clocks{wall: off}
			s.startWith(func(cfg *connector.Config) { cfg.Now = c.now })
			defer s.stop()
			s.await()
			if got := s.conn.Uplink().Offset; (got - off).Abs() > 10*time.Second {
				t.Errorf("the connector takes its clock to be %s off, it is %s", got, off)
			}
			for _, kind := range bothCarriers {
				reachable(w, d, kind, wiki)
			}
		})
	}
	for name, off := range map[string]time.Duration{"1 hour ahead": time.Hour, "1 hour behind": -time.Hour} {
		w.run(name, func(t *testing.T) {
			c := &clocks{wall: off}
			s.startWith(func(cfg *connector.Config) { cfg.Now = c.now })
			defer s.stop()
			eventually(t, "the connector names its clock", func() bool {
				problem := s.conn.Uplink().Problem
				return strings.Contains(problem, "clock of this machine") && strings.Contains(problem, "set")
			})
			if s.conn.Live() {
				t.Error("flows may open with a clock that is an hour off")
			}
			c.set(0, 0)
			s.await()
			reachable(w, d, carrier.TLS, wiki)
		})
	}
}

// reachable checks that bytes pass to the app and back over a link of their own, which ends
// with it: a device has one link to a connector at a time.
func reachable(w *world, d *device, kind carrier.Kind, to *app) {
	w.t.Helper()
	w.run("reachable over "+string(kind), func(t *testing.T) {
		resp := d.granted("wiki")
		tn := d.link(resp.Connectors[0], kind)
		f := tn.tcp(tn.accepted(resp.Grant), to.port())
		defer f.Close()
		echoes(t, f, "hello")
	})
}

// echoes sends a line to an echo app and waits for it to come back whole.
func echoes(t testing.TB, f *flow.Flow, line string) {
	t.Helper()
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(line)); err != nil {
		t.Fatalf("send: %v", err)
	}
	back := make([]byte, len(line))
	if _, err := io.ReadFull(f, back); err != nil || string(back) != line {
		t.Fatalf("%q came back, %v", back, err)
	}
}

// TestFaultSuspend: a machine that slept through its lease serves nothing more, although its
// clock of the day did not move; without news the lease is over when it is over.
func TestFaultSuspend(t *testing.T) {
	_, s, d, wiki := wikiWorld(t)
	c := &clocks{}
	s.startWith(func(cfg *connector.Config) { cfg.Now = c.now })
	s.await()
	tn, ref, g := d.open("wiki", carrier.TLS)
	f := tn.tcp(ref, wiki.port())
	defer f.Close()
	echoes(t, f, "before the lid is closed")
	s.net.set(true)
	c.set(0, 2*time.Minute) // longer than the lease, shorter than the outage mode lets flows go on
	if got := tn.tcpCode(ref, wiki.port()); got != frame.NotLive {
		t.Errorf("a new flow after 2 minutes of sleep: %v, want %v", got, frame.NotLive)
	}
	echoes(t, f, "an open one goes on")
	c.set(0, time.Hour)
	if code, _ := tn.awaitClosed(ref); code != frame.LeaseEnded {
		t.Errorf("after an hour of sleep the micro-tunnel ended with %v", code)
	}
	wiki.awaitEnds(t, 1)
	if _, err := tn.present(g.Grant); frame.CodeOf(err) != frame.NotLive {
		t.Errorf("a grant after the sleep: %v, want %v", err, frame.NotLive)
	}
	c.set(0, 0) // the broker did not sleep for that hour, so its news would seem old
	s.net.set(false)
	s.await()
	if wiki.hits() != 1 {
		t.Errorf("the app saw %d connections, want 1", wiki.hits())
	}
	tn.tcp(tn.accepted(g.Grant), wiki.port()).Close()
}
