package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// read handles frame after frame until the connection ends or the peer breaks the rules.
func (s *Session) read() error {
	r := reader{s: s}
	defer r.drop()
	for {
		if _, err := io.ReadFull(s.conn, r.head[:]); err != nil {
			return err
		}
		h, err := parseHeader(&r.head)
		if err != nil {
			return err
		}
		if err := r.frame(h); err != nil {
			return err
		}
	}
}

// reader is the goroutine that reads the connection.
type reader struct {
	s    *Session
	head [headerLen]byte
	c    *chunk // empty, for the next read
}

func (r *reader) drop() {
	if r.c != nil {
		lent.put(r.c)
		r.c = nil
	}
}

func (r *reader) frame(h header) error {
	switch h.typ {
	case frameDatagram:
		return r.datagram(h.length)
	case framePing, framePong:
		return r.nonce(h.typ)
	default:
	}
	st, err := r.s.lookup(h)
	if err != nil {
		return err
	}
	switch h.typ {
	case frameFin:
		if st != nil {
			st.finished()
		}
		return nil
	case frameReset:
		if st != nil {
			r.s.forget(h.stream)
			st.end(ErrReset)
		}
		return nil
	default:
		return r.data(st, h.length)
	}
}

// lookup finds the stream of a frame; nil is one that has ended here.
func (s *Session) lookup(h header) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	foreign := s.isForeign(h.stream)
	st := s.streams[h.stream]
	switch {
	case h.typ == frameOpen:
		if !foreign || h.stream <= s.latest {
			return nil, fmt.Errorf("%w: stream %d opened out of order", errProtocol, h.stream)
		}
		s.latest = h.stream
		return s.admitLocked(h.stream), nil
	case foreign && h.stream > s.latest, !foreign && h.stream >= s.next:
		return nil, fmt.Errorf("%w: stream %d was never opened", errProtocol, h.stream)
	default:
		return st, nil
	}
}

// admitLocked makes the stream that the peer opens, or refuses it when there are too
// many; s.mu is held.
func (s *Session) admitLocked(id uint32) *Stream {
	if s.err != nil {
		return nil
	}
	st := newStream(s, id)
	if s.foreign < maxStreams {
		select {
		case s.accept <- st:
			s.streams[id] = st
			s.foreign++
			return st
		default:
		}
	}
	s.reset(id)
	return nil
}

// data moves the body of a data frame into st; a nil st has ended and its bytes are
// passed over. The stream's reader is woken for each part: to gather them first halves the
// goodput of a download on an idle machine.
func (r *reader) data(st *Stream, n int) error {
	for n > 0 {
		if size := sizeFor(n); r.c == nil || len(r.c.b) != size {
			r.drop()
			r.c = lent.get(size)
		}
		m, err := r.s.conn.Read(r.c.b[:min(n, len(r.c.b))])
		n -= m
		if m > 0 && st != nil {
			r.c.w = m
			if err := r.deliver(st); err != nil {
				return err
			}
			wake(st.readable)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deliver hands the chunk over. It waits for room, and looks once more after it has said
// so: a wake-up that came before was lost.
func (r *reader) deliver(st *Stream) error {
	if r.offer(st) {
		return nil
	}
	r.s.starved.Store(true)
	defer r.s.starved.Store(false)
	wake(st.readable)
	for !r.offer(st) {
		if err := r.awaitRoom(); err != nil {
			return err
		}
	}
	return nil
}

// offer reports whether the chunk was taken or passed over.
func (r *reader) offer(st *Stream) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.deaf || st.err != nil || st.finIn {
		r.c.w = 0 // bytes after the end
		return true
	}
	if st.in.mem >= maxUnread || r.s.held.Load() >= maxHeld && st.in.mem > 0 {
		return false
	}
	if st.in.add(r.c) {
		r.c.w = 0
		return true
	}
	r.s.held.Add(int64(len(r.c.b)))
	r.c = nil
	return true
}

// awaitRoom returns when somebody has read.
func (r *reader) awaitRoom() error {
	t := time.NewTimer(stallTimeout)
	defer t.Stop()
	select {
	case <-r.s.room:
		return nil
	case <-r.s.done:
		return r.s.Err()
	case <-t.C:
		return errStalled
	}
}

// freed counts memory that streams gave back.
func (s *Session) freed(n int) {
	if n == 0 {
		return
	}
	s.held.Add(-int64(n))
	if s.starved.Load() {
		wake(s.room)
	}
}

func (r *reader) datagram(n int) error {
	p := make([]byte, n)
	if _, err := io.ReadFull(r.s.conn, p); err != nil {
		return err
	}
	r.s.deliverDatagram(p)
	return nil
}

func (r *reader) nonce(typ frameType) error {
	var b [nonceLen]byte
	if _, err := io.ReadFull(r.s.conn, b[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint64(b[:])
	if typ == framePing {
		r.s.loose.pong(n)
		return nil
	}
	r.s.pong(n)
	return nil
}
