package flow

import (
	"errors"
	"fmt"
	"io"

	"github.com/postern-zt/postern/proto/frame"
)

// smallRead is a read below which a stream counts as quiet: the reader then parks with
// a small chunk.
const smallRead = smallChunk

// Serve reads the frames of a's stream until the stream ends, the flow ends, or the peer
// breaks the protocol (which resets the flow). It never waits for the program. When it
// returns, the flow is off this stream; the error says why the stream ended.
func (f *Flow) Serve(a *Attachment) error {
	r := frameReader{f: f, a: a, size: smallChunk}
	err := r.run()
	r.drop()
	f.Detach(a)
	return err
}

// frameReader cuts one stream into frames, in place: payload is queued as slices of the
// chunk it was read into.
//
//	chunk: | parsed ... | r: unparsed | w: free ... |
type frameReader struct {
	f    *Flow
	a    *Attachment
	size int
	c    *chunk
	r, w int

	offset uint64 // of the next payload byte of the open data frame
	left   int    // payload bytes of that frame still to come
	skip   int    // bytes of an unknown optional frame to pass over
	flags  uint8
}

var errFlowEnded = errors.New("flow has ended")

func (r *frameReader) run() error {
	for {
		if err := r.fill(); err != nil {
			return err
		}
		if err := r.parse(); err != nil {
			return err
		}
	}
}

// fill makes room and reads once. A quiet stream gets a small chunk, a busy one a large.
func (r *frameReader) fill() error {
	if r.c == nil || len(r.c.mem) != r.size || len(r.c.mem)-r.w < len(r.c.mem)/4 {
		r.swap()
	}
	n, err := r.a.stream.Read(r.c.mem[r.w:])
	full := r.w+n == len(r.c.mem)
	r.w += n
	switch {
	case full && r.size == smallChunk:
		r.size = mediumChunk
	case full:
		r.size = largeChunk
	case n < smallRead && r.size > smallChunk:
		r.size = smallChunk
	}
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// swap moves the unparsed rest, less than a small frame, into a fresh chunk, or to the
// front of the present one when no queued payload lies in it.
func (r *frameReader) swap() {
	old := r.c
	if old != nil && len(old.mem) == r.size && old.refs.Load() == 1 {
		r.w = copy(old.mem, old.mem[r.r:r.w])
		r.r = 0
		return
	}
	r.c = r.f.mem.get(r.size)
	if old == nil {
		return
	}
	r.w = copy(r.c.mem, old.mem[r.r:r.w])
	r.r = 0
	old.release()
}

func (r *frameReader) drop() {
	if r.c != nil {
		r.c.release()
		r.c = nil
	}
}

// parse handles everything that stands in the chunk.
func (r *frameReader) parse() error {
	f := r.f
	f.mu.Lock()
	if f.att != r.a {
		f.mu.Unlock()
		return errFlowEnded
	}
	var wakeRecv, wakeSend bool
	err := r.frames(&wakeRecv, &wakeSend)
	answer := f.refuseLocked()
	f.endLocked()
	f.mu.Unlock()
	if wakeRecv {
		wake(f.recvReady)
	}
	if wakeSend {
		wake(f.sendReady)
	}
	if answer {
		f.resend()
	}
	return err
}

func (r *frameReader) frames(wakeRecv, wakeSend *bool) error {
	for r.r < r.w {
		switch {
		case r.left > 0:
			*wakeRecv = true
			if err := r.payload(); err != nil {
				return err
			}
		case r.skip > 0:
			n := min(r.skip, r.w-r.r)
			r.r, r.skip = r.r+n, r.skip-n
		default:
			more, err := r.header(wakeRecv, wakeSend)
			if err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// header handles the frame that starts at r; more is false when it is not whole yet.
func (r *frameReader) header(wakeRecv, wakeSend *bool) (more bool, err error) {
	b := r.c.mem[r.r:r.w]
	if len(b) < frame.HeaderLen {
		return false, nil
	}
	h, err := frame.ParseHeader(b)
	if err != nil {
		return false, r.breach(err)
	}
	core := &r.f.core
	used := frame.HeaderLen
	switch h.Type {
	case frame.TypeData:
		r.offset, r.left, r.flags = h.Value, int(h.Length), h.Flags
	case frame.TypeAck:
		if h.Length != frame.AckLen-frame.HeaderLen {
			return false, r.breach(fmt.Errorf("ack of %d bytes: %w", h.Length, frame.ErrPayload))
		}
		if len(b) < frame.AckLen {
			return false, nil
		}
		used = frame.AckLen
		ack, _ := frame.ParseAck(h, b[frame.HeaderLen:used]) // its length was checked above
		*wakeSend = true
		err = core.onAck(ack)
	case frame.TypeFin:
		*wakeRecv = true
		err = core.onFin(h.Value)
		r.skip = int(h.Length)
	case frame.TypeRst:
		core.onRst(h.Code)
		err = errFlowEnded
	default:
		if h.Flags&frame.Optional == 0 {
			return false, r.breach(fmt.Errorf("frame type %d on a flow: %w", h.Type, frame.ErrType))
		}
		r.skip = int(h.Length)
	}
	r.r += used
	return true, err
}

// payload queues what is here of the open data frame.
func (r *frameReader) payload() error {
	n := min(r.left, r.w-r.r)
	b := r.c.mem[r.r : r.r+n : r.r+n]
	skip, err := r.f.core.onData(r.offset, n, r.flags)
	if err != nil {
		return err
	}
	if skip < n {
		r.f.queue.push(r.f.mem, r.c, b[skip:])
	}
	r.offset += uint64(n)
	r.left -= n
	r.r += n
	return nil
}

// breach resets the flow because the peer broke the protocol.
func (r *frameReader) breach(err error) error {
	r.f.core.fail(frame.Protocol)
	return err
}
