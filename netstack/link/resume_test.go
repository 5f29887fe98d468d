package link_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/test/netlab"
)

// bulkSize is what one transfer moves in both directions together.
func bulkSize() int {
	if testing.Short() || raceOn {
		return 20 << 20
	}
	return 200 << 20
}

// source writes n repeatable bytes and returns their checksum.
func source(w io.Writer, n int, seed uint64) ([]byte, error) {
	sum := sha256.New()
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	_, err := io.CopyBuffer(w, io.TeeReader(io.LimitReader(rand.NewChaCha8(key), int64(n)), sum), make([]byte, 256<<10))
	return sum.Sum(nil), err
}

// meter counts what passes and calls at each mark once.
type meter struct {
	hash.Hash
	n     int
	marks []mark
}

type mark struct {
	at int
	do func()
}

func (m *meter) Write(p []byte) (int, error) {
	m.n += len(p)
	for len(m.marks) > 0 && m.n >= m.marks[0].at {
		m.marks[0].do()
		m.marks = m.marks[1:]
	}
	return m.Hash.Write(p)
}

// transfer moves n bytes each way at once through one spliced flow and compares both
// checksums; marks fire as the client's program receives.
func transfer(t *testing.T, w *world, c *link.Client, port uint16, ref link.GrantRef, n int, marks ...mark) {
	t.Helper()
	type result struct {
		sent, got []byte
		err       error
	}
	far := make(chan result, 1)
	w.handler.app(port, func(conn net.Conn) { far <- both(conn, n, 1, nil).result() })
	f, err := c.OpenTCP(t.Context(), ref, port)
	if err != nil {
		t.Fatal(err)
	}
	local := netlab.NewStream(netlab.StreamConfig{})
	var splice sync.WaitGroup
	splice.Go(func() { f.Splice(local.A) })
	near := both(local.B, n, 2, marks).result()
	splice.Wait()
	end := <-far
	if near.err != nil || end.err != nil {
		t.Fatalf("transfer: near %v, far %v", near.err, end.err)
	}
	if string(near.sent) != string(end.got) || string(end.sent) != string(near.got) {
		t.Error("checksums differ")
	}
}

type exchange struct {
	sent, got []byte
	err       error
}

func (e exchange) result() struct {
	sent, got []byte
	err       error
} {
	return struct {
		sent, got []byte
		err       error
	}(e)
}

// both sends n bytes, half-closes, and reads until the end, at the same time.
func both(conn net.Conn, n int, seed uint64, marks []mark) exchange {
	defer conn.Close()
	var e exchange
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() {
		e.sent, sendErr = source(conn, n, seed)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	})
	m := &meter{Hash: sha256.New(), marks: marks}
	_, e.err = io.CopyBuffer(struct{ io.Writer }{m}, struct{ io.Reader }{conn}, make([]byte, 256<<10))
	wg.Wait()
	if e.err == nil {
		e.err = sendErr
	}
	if e.err == nil && m.n != n {
		e.err = fmt.Errorf("received %d of %d bytes", m.n, n)
	}
	e.got = m.Sum(nil)
	return e
}

func granted(t *testing.T, w *world, roads ...*road) *link.Client {
	t.Helper()
	c := w.client(newCredentials(t), nil, roads...)
	if err := c.Present(t.Context(), envelope("gnt_a", 80), 1); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTransferSurvivesKilledCarriers(t *testing.T) {
	w := newWorld(t, link.Limits{})
	a, b := &road{name: "a"}, &road{name: "b"}
	c := granted(t, w, a, b)
	bulk := bulkSize()
	var marks []mark
	for i := 1; i < 10; i++ {
		r := []*road{a, b}[i%2]
		marks = append(marks, mark{at: i * bulk / 20, do: r.flap})
	}
	transfer(t, w, c, 80, 1, bulk/2, marks...)
	rec := w.handler.awaitClosed(t, 1)[0]
	if rec.Cause != frame.OK || rec.ToApp != uint64(bulk/2) || rec.FromApp != uint64(bulk/2) {
		t.Errorf("record = cause %v, %d to app, %d from app", rec.Cause, rec.ToApp, rec.FromApp)
	}
}

func TestTransferSurvivesSilentCarrier(t *testing.T) {
	w := newWorld(t, link.Limits{})
	a, b := &road{name: "a"}, &road{name: "b"}
	c := granted(t, w, a, b)
	start := time.Now()
	transfer(t, w, c, 80, 1, 20<<20, mark{at: 5 << 20, do: a.cut})
	t.Logf("took %s", time.Since(start))
}

func TestTransferSurvivesOneRoadRestarted(t *testing.T) {
	w := newWorld(t, link.Limits{})
	a := &road{name: "a"}
	c := granted(t, w, a)
	transfer(t, w, c, 80, 1, 20<<20, mark{at: 5 << 20, do: a.flap}, mark{at: 10 << 20, do: a.flap})
}

// TestManyFlowsSurviveADeadCarrier: a thousand flows on one carrier all go on when it
// dies or falls silent; each app sees one connection.
func TestManyFlowsSurviveADeadCarrier(t *testing.T) {
	many := 1000
	if testing.Short() || raceOn {
		many = 200
	}
	for name, breakIt := range map[string]func(*road){"reset": (*road).kill, "silent": (*road).cut} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, link.Limits{})
			w.handler.app(80, echo)
			a, b := &road{name: "a"}, &road{name: "b"}
			c := granted(t, w, a, b)
			flows := make([]net.Conn, many)
			for i := range flows {
				f, err := c.OpenTCP(t.Context(), 1, 80)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				flows[i] = f
			}
			answer(t, flows)
			start := time.Now()
			active := c.Status().Carriers[0].Name
			breakIt(map[string]*road{"a": a, "b": b}[active])
			answer(t, flows)
			t.Logf("%d flows answered again after %s", many, time.Since(start).Round(time.Millisecond))
			if n := w.handler.dialled(); n != many {
				t.Errorf("%d dials for %d flows", n, many)
			}
		})
	}
}

// TestOpensBesideArrivals: devices that arrive and flows that open at the same time do
// not wait for each other for ever.
func TestOpensBesideArrivals(t *testing.T) {
	const devices, flows = 40, 50
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	var all sync.WaitGroup
	for range devices {
		c := granted(t, w, &road{name: "a"}, &road{name: "b"})
		for range flows {
			all.Go(func() {
				f, err := c.OpenTCP(t.Context(), 1, 80)
				if err != nil {
					t.Error(err)
					return
				}
				_ = f.Close()
			})
		}
	}
	all.Wait()
}

// answer sends a byte on every flow and waits for all of them to come back.
func answer(t *testing.T, flows []net.Conn) {
	t.Helper()
	for i, f := range flows {
		if _, err := f.Write([]byte{byte(i)}); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
	}
	for i, f := range flows {
		var b [1]byte
		if _, err := io.ReadFull(f, b[:]); err != nil || b[0] != byte(i) {
			t.Fatalf("flow %d: %d, %v", i, b[0], err)
		}
	}
}
