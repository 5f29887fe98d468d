package flow

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/postern-zt/postern/proto/frame"
)

// end is one side of the model: the core under test, and what the reference says that
// its program wrote and read.
type end struct {
	core  core
	mem   *Memory
	wrote []byte
	got   []byte // in order, held for the program
	read  int    // of got, drained
}

// wireFrame is one frame on the way; payload is a copy.
type wireFrame struct {
	out     output
	payload []byte
}

// model is two ends, two ordered pipes, and a carrier that may vanish at any point.
type model struct {
	t     *rapid.T
	a, b  *end
	ab    []wireFrame
	ba    []wireFrame
	epoch uint32
	up    bool
}

func newModel(t *rapid.T) *model {
	m := &model{t: t, epoch: 1, up: true}
	m.a, m.b = newEnd(), newEnd()
	m.a.core.start(startWindow)
	m.b.core.start(startWindow)
	return m
}

func newEnd() *end {
	mem := NewMemory(1 << 20)
	mem.flows.Add(1)
	return &end{core: newCore(1, startWindow), mem: mem}
}

func (m *model) side(name string) (from, to *end, pipe *[]wireFrame) {
	if rapid.Bool().Draw(m.t, name) {
		return m.a, m.b, &m.ab
	}
	return m.b, m.a, &m.ba
}

func (m *model) write() {
	e, _, _ := m.side("writer")
	room := e.core.room(e.mem.share())
	if room == 0 {
		return
	}
	n := min(room, rapid.SampledFrom([]int{1, 7, 1000, 30000, frame.MaxData}).Draw(m.t, "n"))
	c := e.mem.get(n + frame.HeaderLen)
	for i := range n {
		b := byte(len(e.wrote) * 7)
		c.mem[frame.HeaderLen+i] = b
		e.wrote = append(e.wrote, b)
	}
	e.core.add(c, n, e.mem.share())
}

func (m *model) end() {
	e, _, _ := m.side("ender")
	e.core.closeSend()
}

func (m *model) output() {
	e, _, pipe := m.side("sender")
	out := e.core.next(e.mem.share(), rapid.Bool().Draw(m.t, "idle"))
	if out.kind == outNone {
		return
	}
	f := wireFrame{out: out}
	if out.kind == outData {
		f.payload = bytes.Clone(out.seg.c.mem[frame.HeaderLen : frame.HeaderLen+out.seg.n])
		out.seg.c.release()
	}
	if m.up {
		*pipe = append(*pipe, f)
	}
}

func (m *model) deliver() {
	_, to, pipe := m.side("receiver")
	if len(*pipe) == 0 {
		return
	}
	f := (*pipe)[0]
	if n := len(f.payload); n > 1 && rapid.Bool().Draw(m.t, "in parts") {
		k := rapid.IntRange(1, n-1).Draw(m.t, "part")
		rest := f
		rest.payload, f.payload = f.payload[k:], f.payload[:k]
		rest.out.seg.off += uint64(k)
		(*pipe)[0] = rest
	} else {
		*pipe = (*pipe)[1:]
	}
	if err := to.take(f); err != nil {
		m.t.Fatalf("honest frame %v refused: %v", f.out.kind, err)
	}
}

func (e *end) take(f wireFrame) error {
	switch f.out.kind {
	case outData:
		skip, err := e.core.onData(f.out.seg.off, len(f.payload), 0)
		e.got = append(e.got, f.payload[skip:]...)
		return err
	case outAck:
		return e.core.onAck(f.out.ack)
	case outFin:
		return e.core.onFin(f.out.fin)
	default:
		return fmt.Errorf("unexpected reset %v", f.out.code)
	}
}

func (m *model) drain() {
	e, _, _ := m.side("drainer")
	if n := len(e.got) - e.read; n > 0 {
		k := rapid.IntRange(1, n).Draw(m.t, "k")
		e.read += k
		e.core.onDrained(k)
	}
	e.core.drainedFin()
}

// lose drops the carrier with everything on the way.
func (m *model) lose() {
	m.up = false
	m.ab, m.ba = nil, nil
	if rapid.Bool().Draw(m.t, "a notices") {
		m.a.core.detach()
	}
	if rapid.Bool().Draw(m.t, "b notices") {
		m.b.core.detach()
	}
}

// reattach is attach and attached; the answer may be lost, and then it is tried again.
func (m *model) reattach() {
	m.ab, m.ba = nil, nil
	m.epoch++
	if err := m.b.core.attach(m.epoch, m.a.core.state()); err != nil {
		m.t.Fatalf("attach refused: %v", err)
	}
	if rapid.IntRange(0, 3).Draw(m.t, "answer lost") == 0 {
		m.up = false
		return
	}
	if err := m.a.core.attach(m.epoch, m.b.core.state()); err != nil {
		m.t.Fatalf("attached refused: %v", err)
	}
	m.up = true
}

// late repeats an attach of an old epoch, as from a carrier that was slow.
func (m *model) late() {
	e, other, _ := m.side("late")
	before := e.core.epoch
	old := rapid.Uint32Range(0, before).Draw(m.t, "old epoch")
	if err := e.core.attach(old, other.core.state()); frame.CodeOf(err) != frame.StaleEpoch || e.core.epoch != before {
		m.t.Fatalf("attach of epoch %d after %d: %v", old, before, err)
	}
}

// check compares both ends with the reference after every step.
func (m *model) check() {
	for _, p := range [][2]*end{{m.a, m.b}, {m.b, m.a}} {
		from, to := p[0], p[1]
		if !bytes.HasPrefix(from.wrote, to.got) {
			m.t.Fatal("received bytes differ from the sent")
		}
		c := &from.core
		if c.reset {
			m.t.Fatalf("reset: %v", c.code)
		}
		if c.acked > uint64(len(to.got)) || c.end != uint64(len(from.wrote)) || c.end-c.acked > MaxWindow {
			m.t.Fatalf("acked %d, end %d, peer has %d", c.acked, c.end, len(to.got))
		}
		if to.core.received != uint64(len(to.got)) || len(to.got)-to.read > MaxWindow {
			m.t.Fatalf("received %d of %d, %d read", to.core.received, len(to.got), to.read)
		}
		if c.finAcked && !to.core.peerFin {
			m.t.Fatal("the end is acknowledged but was not received")
		}
	}
}

// finish lets everything drain over a good carrier and wants both ends complete.
func (m *model) finish() {
	m.a.core.closeSend()
	m.b.core.closeSend()
	m.ab, m.ba = nil, nil
	m.epoch++
	if m.b.core.attach(m.epoch, m.a.core.state()) != nil || m.a.core.attach(m.epoch, m.b.core.state()) != nil {
		m.t.Fatal("last attach refused")
	}
	for range 10000 {
		if m.a.core.complete() && m.b.core.complete() {
			break
		}
		m.settle(m.a, m.b)
		m.settle(m.b, m.a)
	}
	for _, e := range []*end{m.a, m.b} {
		if !e.core.complete() || e.core.segs.len() != 0 || e.core.segs.mem != 0 {
			m.t.Fatalf("not complete: %+v", e.core)
		}
	}
	if !bytes.Equal(m.a.wrote, m.b.got) || !bytes.Equal(m.b.wrote, m.a.got) {
		m.t.Fatal("transfer differs")
	}
}

func (m *model) settle(from, to *end) {
	out := from.core.next(from.mem.share(), true)
	if out.kind != outNone {
		f := wireFrame{out: out}
		if out.kind == outData {
			f.payload = bytes.Clone(out.seg.c.mem[frame.HeaderLen : frame.HeaderLen+out.seg.n])
			out.seg.c.release()
		}
		if err := to.take(f); err != nil {
			m.t.Fatal(err)
		}
	}
	to.core.onDrained(len(to.got) - to.read)
	to.read = len(to.got)
	to.core.drainedFin()
}

func TestCoreModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		steps := []func(){m.write, m.write, m.output, m.output, m.output, m.deliver, m.deliver, m.deliver, m.drain, m.drain, m.lose, m.reattach, m.late}
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			i := rapid.IntRange(0, len(steps)).Draw(t, "step")
			if i == len(steps) {
				if rapid.IntRange(0, 9).Draw(t, "end") == 0 {
					m.end()
				}
			} else {
				steps[i]()
			}
			m.check()
		}
		m.finish()
	})
}

// A dishonest peer ends the flow and nothing else.
func TestCoreRefuses(t *testing.T) {
	for name, breach := range map[string]struct {
		do   func(*core) error
		want frame.Code
	}{
		"gap":                {func(c *core) error { _, err := c.onData(1, 1, 0); return err }, frame.Gap},
		"beyond the window":  {func(c *core) error { _, err := c.onData(0, startWindow+1, 0); return err }, frame.Protocol},
		"offset wraps":       {func(c *core) error { c.received = 1<<64 - 1; _, err := c.onData(1<<64-1, 2, 0); return err }, frame.Protocol},
		"after the end":      {func(c *core) error { _ = c.onFin(0); _, err := c.onData(0, 1, 0); return err }, frame.Protocol},
		"end beyond":         {func(c *core) error { return c.onFin(1) }, frame.Gap},
		"end before":         {func(c *core) error { _, _ = c.onData(0, 2, 0); return c.onFin(1) }, frame.Protocol},
		"ack of unsent":      {func(c *core) error { return c.onAck(frame.Ack{Received: 1}) }, frame.Protocol},
		"ack of unsent end":  {func(c *core) error { return c.onAck(frame.Ack{Fin: true}) }, frame.Protocol},
		"drained unreceived": {func(c *core) error { return c.onAck(frame.Ack{Drained: 1}) }, frame.Protocol},
		"attach lost bytes":  {func(c *core) error { c.sent, c.end, c.acked = 9, 9, 9; return c.attach(2, frame.Ack{Received: 3}) }, frame.Gap},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCore(1, startWindow)
			c.start(startWindow)
			err := breach.do(&c)
			if frame.CodeOf(err) != breach.want || !c.reset {
				t.Errorf("got %v, reset %v, want %v", err, c.reset, breach.want)
			}
			if out := c.next(FloorWindow, false); out.kind != outRst || out.code != breach.want {
				t.Errorf("the peer is told %v %v", out.kind, out.code)
			}
		})
	}
}

func TestZeroWindowStopsTheSender(t *testing.T) {
	mem := NewMemory(0)
	mem.flows.Add(1)
	c := newCore(1, startWindow)
	c.start(100)
	if room := c.room(mem.share()); room != 100 {
		t.Fatalf("room = %d, want 100", room)
	}
	c.add(mem.get(smallChunk), 100, mem.share())
	out := c.next(mem.share(), false)
	out.seg.c.release()
	if room := c.room(mem.share()); room != 0 {
		t.Errorf("room = %d after the window is used up", room)
	}
	if err := c.onAck(frame.Ack{Received: 100, Drained: 0, Window: 100}); err != nil {
		t.Fatal(err)
	}
	if room := c.room(mem.share()); room != 0 || c.segs.len() != 0 {
		t.Errorf("room = %d, %d retained: held bytes are freed but give no credit", room, c.segs.len())
	}
	if err := c.onAck(frame.Ack{Received: 100, Drained: 60, Window: 100}); err != nil {
		t.Fatal(err)
	}
	if room := c.room(mem.share()); room != 60 {
		t.Errorf("room = %d after 60 bytes were drained", room)
	}
}
