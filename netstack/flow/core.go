package flow

import (
	"fmt"

	"github.com/postern-zt/postern/proto/frame"
)

// ackFrames is how many frames a receiver lets pass before it acknowledges, so that many
// tiny writes do not pin a chunk each for long.
const ackFrames = 64

// maxAckStep bounds the bytes between two acks of a bulk flow: often enough to keep the
// sender's window open, rare enough to cost nothing.
const maxAckStep = 512 << 10

// core is the state of one flow, both directions, as a plain value: no I/O, no clock, no
// goroutine. The runtime calls it under its lock and carries out what next returns.
//
//	send:     acked <= sent <= end <= limit      acked..end is retained in segs
//	receive:  drained <= received <= advertised
//
//	state:    attached <-> detached, any -> reset (final), both fins done -> complete
type core struct {
	epoch    uint32
	attached bool
	held     bool

	reset   bool
	code    frame.Code
	rstSent bool

	segs     segments
	sentIdx  int // segments before this index were sent on this attachment
	acked    uint64
	sent     uint64 // highest offset ever handed out
	end      uint64
	limit    uint64
	fin      bool // our program has ended its direction
	finSent  bool // on this attachment
	finEver  bool
	finAcked bool

	received   uint64
	drained    uint64
	advertised uint64
	window     uint32
	peerFin    bool
	finDrained bool
	ackedTo    uint64 // drained when the last ack was made
	ackedRecv  uint64 // received when the last ack was made
	frames     int
	ackNow     bool
}

// outKind says what next wants written.
type outKind uint8

const (
	outNone outKind = iota
	outRst
	outAck
	outData
	outFin
)

// output is one frame to write. For outData the segment's chunk is held for the caller,
// who releases it after writing.
type output struct {
	kind outKind
	seg  segment
	ack  frame.Ack
	fin  uint64
	code frame.Code
}

func newCore(epoch uint32, window uint32) core {
	return core{epoch: epoch, window: window, advertised: uint64(window)}
}

// failure resets the flow from inside and returns the reason.
func (c *core) failure(code frame.Code, what string) error {
	c.fail(code)
	return fmt.Errorf("%s: %w", what, code.Err())
}

// fail ends the flow; the first reason stays. All retained bytes are freed.
func (c *core) fail(code frame.Code) bool {
	if c.reset || c.complete() {
		return false
	}
	c.reset, c.code = true, code
	c.segs.drop(c.segs.len())
	return true
}

// complete reports that both directions ended and everything arrived.
func (c *core) complete() bool { return c.finAcked && c.finDrained }

// room is how many bytes the runtime may read from the program.
func (c *core) room(share int) int {
	if c.reset || c.fin || c.held || c.segs.mem > 2*share {
		return 0
	}
	retained := int(c.end - c.acked)
	if c.limit <= c.end || retained >= share {
		return 0
	}
	room := int(min(c.limit-c.end, uint64(share-retained)))
	if room < smallChunk && c.end > c.acked {
		return 0 // an ack is due anyway; then a worthwhile piece fits
	}
	return room
}

// add retains n payload bytes that stand behind the header space of ch, and writes the
// frame's header there. core takes over the caller's use of ch. share decides whether
// the sender is about to stall and wants an ack.
func (c *core) add(ch *chunk, n, share int) {
	if c.reset || c.fin {
		ch.release()
		return
	}
	s := segment{c: ch, off: c.end, n: n}
	c.end += uint64(n)
	c.segs.push(s)
	h := frame.Header{Type: frame.TypeData, Length: uint32(n), Value: s.off}
	if c.room(share) < n {
		h.Flags = frame.AckWanted
	}
	frame.PutHeader(ch.mem, h)
}

// closeSend ends our direction at the present end.
func (c *core) closeSend() { c.fin = true }

// next returns the next frame to write on the current attachment. idle says that the
// program has taken everything and nothing came for a while.
func (c *core) next(share int, idle bool) output {
	if !c.attached {
		return output{}
	}
	if c.reset {
		if c.rstSent {
			return output{}
		}
		c.rstSent = true
		return output{kind: outRst, code: c.code}
	}
	if c.ackDue(idle) {
		return output{kind: outAck, ack: c.takeAck(share)}
	}
	if c.held {
		return output{}
	}
	if c.sentIdx < c.segs.len() {
		s := c.segs.at(c.sentIdx)
		c.sentIdx++
		c.sent = max(c.sent, s.off+uint64(s.n))
		s.c.hold()
		return output{kind: outData, seg: s}
	}
	if c.fin && !c.finSent {
		c.finSent, c.finEver = true, true
		return output{kind: outFin, fin: c.end}
	}
	return output{}
}

func (c *core) ackDue(idle bool) bool {
	step := uint64(min(c.window/4, maxAckStep))
	if c.ackNow || c.frames >= ackFrames || c.drained-c.ackedTo >= step {
		return true
	}
	return idle && (c.received != c.ackedRecv || c.drained != c.ackedTo)
}

// takeAck makes the ack to send now. A flow that drains quickly gets a larger window,
// up to its share; a smaller share shrinks it as the old window is used up.
func (c *core) takeAck(share int) frame.Ack {
	if c.drained-c.ackedTo >= uint64(c.window/4) {
		c.window = uint32(min(2*int(c.window), MaxWindow))
	}
	c.window = uint32(max(min(int(c.window), share), FloorWindow))
	return c.state()
}

// state is what the peer must know about our receiving side; it counts as an ack.
func (c *core) state() frame.Ack {
	c.ackedTo, c.ackedRecv, c.frames, c.ackNow = c.drained, c.received, 0, false
	c.advertised = max(c.advertised, c.drained+uint64(c.window))
	return frame.Ack{Received: c.received, Drained: c.drained, Window: uint32(c.advertised - c.drained), Fin: c.peerFin}
}

// onAck frees what the peer holds and moves the send limit, which never goes back.
func (c *core) onAck(a frame.Ack) error {
	if c.reset {
		return nil
	}
	if a.Received > c.sent || a.Drained > a.Received || a.Fin && (!c.finEver || a.Received != c.end) {
		return c.failure(frame.Protocol, "ack of bytes that were not sent")
	}
	c.acked = max(c.acked, a.Received)
	n := c.segs.before(c.acked)
	c.segs.drop(n)
	c.sentIdx = max(c.sentIdx-n, 0)
	c.limit = max(c.limit, a.Drained+uint64(a.Window))
	c.finAcked = c.finAcked || a.Fin
	return nil
}

// onData takes payload of n bytes at off: it returns how many leading bytes are already
// known. A gap or a breach of the window ends the flow.
func (c *core) onData(off uint64, n int, flags uint8) (skip int, err error) {
	if c.reset {
		return n, nil
	}
	endOff := off + uint64(n)
	switch {
	case off > c.received:
		return n, c.failure(frame.Gap, "bytes are missing")
	case endOff < off || endOff > c.advertised || c.peerFin && endOff > c.received:
		return n, c.failure(frame.Protocol, "bytes beyond the window or the end")
	}
	c.frames++
	if flags&frame.AckWanted != 0 {
		c.ackNow = true
	}
	if endOff <= c.received {
		return n, nil
	}
	skip = int(c.received - off)
	c.received = endOff
	return skip, nil
}

// onFin ends the peer's direction at final.
func (c *core) onFin(final uint64) error {
	switch {
	case c.reset:
		return nil
	case final > c.received:
		return c.failure(frame.Gap, "bytes are missing before the end")
	case final < c.received:
		return c.failure(frame.Protocol, "the end lies before bytes already sent")
	}
	c.peerFin, c.ackNow = true, true
	return nil
}

// onRst ends the flow with the peer's reason; nothing is sent back.
func (c *core) onRst(code frame.Code) {
	if code == frame.OK {
		code = frame.Reset
	}
	if c.fail(code) {
		c.rstSent = true
	}
}

// onDrained says that n more bytes left into the program's socket.
func (c *core) onDrained(n int) { c.drained += uint64(n) }

// drainedFin reports, once, that the program has taken all bytes and must see the end.
func (c *core) drainedFin() bool {
	if c.reset || !c.peerFin || c.finDrained || c.drained != c.received {
		return false
	}
	c.finDrained = true
	return true
}

// attach continues on a new attachment, whose peer stands at a. A lower or equal epoch
// is refused and changes nothing.
func (c *core) attach(epoch uint32, a frame.Ack) error {
	if epoch <= c.epoch {
		return fmt.Errorf("attach epoch %d after %d: %w", epoch, c.epoch, frame.StaleEpoch.Err())
	}
	c.epoch, c.attached, c.finSent = epoch, true, false
	if c.reset {
		c.rstSent = false
		return nil
	}
	if a.Received < c.acked {
		return c.failure(frame.Gap, "the peer lost bytes that it had acknowledged")
	}
	if err := c.onAck(a); err != nil {
		return err
	}
	c.sentIdx = 0
	c.finSent = c.finAcked
	return nil
}

// start is the first attachment, made by open and opened: the peer has received nothing.
func (c *core) start(peerWindow uint32) {
	c.attached = true
	c.limit = max(c.limit, uint64(peerWindow))
}

// detach stops output until the next attachment.
func (c *core) detach() { c.attached = false }
