package flow

import (
	"time"

	"github.com/postern-zt/postern/proto/frame"
)

const (
	// reassembleFor is how long the pieces of a datagram wait for the others (rule 18).
	reassembleFor = time.Second
	// reassembleBytes bounds the pieces that one flow holds.
	reassembleBytes = 1 << 20
)

// reassembler puts the pieces of datagrams together: a plain value, now comes in.
// Incomplete datagrams are dropped when they are late or when memory is short, oldest
// first.
type reassembler struct {
	partial map[uint32]*partial
	bytes   int
}

type partial struct {
	pieces [][]byte
	got    int
	bytes  int
	since  time.Time
}

// add takes one piece, which it copies, and returns the whole datagram when it is
// complete. A whole datagram of one piece is returned as it is, borrowed.
func (r *reassembler) add(f frame.Fragment, b []byte, now time.Time) []byte {
	if f.Total == 1 {
		return b
	}
	r.expire(now)
	p := r.partial[f.Datagram]
	if p == nil {
		if r.partial == nil {
			r.partial = make(map[uint32]*partial)
		}
		p = &partial{pieces: make([][]byte, f.Total), since: now}
		r.partial[f.Datagram] = p
	}
	if len(p.pieces) != int(f.Total) || p.pieces[f.Index] != nil || p.bytes+len(b) > frame.MaxDatagram {
		return nil
	}
	p.pieces[f.Index] = append(make([]byte, 0, max(len(b), 1)), b...)
	p.got++
	p.bytes += len(b)
	r.bytes += len(b)
	if p.got == len(p.pieces) {
		r.forget(f.Datagram)
		return join(p)
	}
	for r.bytes > reassembleBytes || len(r.partial) > maxPartial {
		r.dropOldest()
	}
	return nil
}

// maxPartial bounds the unfinished datagrams, whose bookkeeping costs memory as well.
const maxPartial = 256

func join(p *partial) []byte {
	out := make([]byte, 0, p.bytes)
	for _, b := range p.pieces {
		out = append(out, b...)
	}
	return out
}

func (r *reassembler) forget(id uint32) {
	r.bytes -= r.partial[id].bytes
	delete(r.partial, id)
}

func (r *reassembler) expire(now time.Time) {
	for id, p := range r.partial {
		if now.Sub(p.since) > reassembleFor {
			r.forget(id)
		}
	}
}

func (r *reassembler) dropOldest() {
	var oldest uint32
	var since time.Time
	for id, p := range r.partial {
		if since.IsZero() || p.since.Before(since) {
			oldest, since = id, p.since
		}
	}
	r.forget(oldest)
}

// fragments cuts p into datagrams of at most limit bytes and hands each to send, in one
// buffer that send must not keep.
func fragments(flow uint64, id uint32, p []byte, limit int, send func([]byte) error) error {
	piece := limit - frame.FragmentLen
	total := max((len(p)+piece-1)/max(piece, 1), 1)
	if piece <= 0 || total > frame.MaxFragments || len(p) > frame.MaxDatagram {
		return errTooLarge
	}
	buf := make([]byte, 0, min(limit, len(p)+frame.FragmentLen))
	for i := range total {
		part := p[i*piece : min((i+1)*piece, len(p))]
		buf = buf[:frame.FragmentLen]
		frame.PutFragment(buf, frame.Fragment{Flow: flow, Datagram: id, Index: uint8(i), Total: uint8(total)})
		if err := send(append(buf, part...)); err != nil {
			return err
		}
	}
	return nil
}
