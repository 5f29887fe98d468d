package mux

import (
	"context"
	"encoding/binary"
	"sync"
	"time"
)

const (
	// datagramQueue bounds the datagrams that wait in each direction; the oldest goes.
	datagramQueue = 256
	// looseBatch is how much of them one write gathers.
	looseBatch = 64 << 10
	// maxResets bounds the resets that wait; a peer that takes none of so many is dead.
	maxResets = 2 * maxStreams
)

// looseFrames are those that belong to nobody who could wait for their turn: resets,
// pings, pongs and datagrams. One goroutine of the session writes them.
type looseFrames struct {
	ready chan struct{} // length 1: a wake-up for the writer

	mu        sync.Mutex // guards the fields below
	resets    []uint32
	datagrams [][]byte
	flooded   bool
	answer    uint64 // the last ping's nonce, when due
	due       bool
	asked     uint64 // our last ping
	askedAt   time.Time
	ask       bool
}

// reset queues a reset; it never waits.
func (s *Session) reset(id uint32) {
	l := &s.loose
	l.mu.Lock()
	if len(l.resets) < maxResets {
		l.resets = append(l.resets, id)
	} else {
		l.flooded = true
	}
	l.mu.Unlock()
	wake(l.ready)
}

// SendDatagram queues a copy of p; when the queue is full the oldest goes.
func (s *Session) SendDatagram(p []byte) error {
	if len(p) > MaxDatagram {
		return ErrDatagramTooLarge
	}
	b := append([]byte(nil), p...)
	l := &s.loose
	l.mu.Lock()
	if len(l.datagrams) >= datagramQueue {
		l.datagrams[0] = nil
		l.datagrams = l.datagrams[1:]
	}
	l.datagrams = append(l.datagrams, b)
	l.mu.Unlock()
	wake(l.ready)
	return nil
}

// ReceiveDatagram waits for one datagram, which belongs to the caller.
func (s *Session) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case p := <-s.datagrams:
		return p, nil
	case <-s.done:
		return nil, s.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// deliverDatagram queues p for ReceiveDatagram; when the queue is full the oldest goes.
// Only the reader calls it.
func (s *Session) deliverDatagram(p []byte) {
	for {
		select {
		case s.datagrams <- p:
			return
		default:
		}
		select {
		case <-s.datagrams:
		default:
		}
	}
}

func (l *looseFrames) ping(now time.Time) {
	l.mu.Lock()
	l.asked++
	l.askedAt, l.ask = now, true
	l.mu.Unlock()
	wake(l.ready)
}

// answered returns the round trip of our last ping.
func (l *looseFrames) answered(nonce uint64, now time.Time) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if nonce != l.asked || l.askedAt.IsZero() {
		return 0, false
	}
	took := now.Sub(l.askedAt)
	l.askedAt = time.Time{}
	return took, true
}

// pong answers a ping; of several that wait only the last is answered.
func (l *looseFrames) pong(nonce uint64) {
	l.mu.Lock()
	l.answer, l.due = nonce, true
	l.mu.Unlock()
	wake(l.ready)
}

// gather appends what waits, at most about looseBatch, resets first.
func (l *looseFrames) gather(b []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flooded {
		return b, errFlooded
	}
	for _, id := range l.resets {
		b = header{typ: frameReset, stream: id}.append(b)
	}
	l.resets = l.resets[:0]
	if l.due {
		b = binary.BigEndian.AppendUint64(header{typ: framePong, length: nonceLen}.append(b), l.answer)
	}
	if l.ask {
		b = binary.BigEndian.AppendUint64(header{typ: framePing, length: nonceLen}.append(b), l.asked)
	}
	l.due, l.ask = false, false
	for len(l.datagrams) > 0 && len(b) < looseBatch {
		p := l.datagrams[0]
		l.datagrams[0] = nil
		l.datagrams = l.datagrams[1:]
		b = append(header{typ: frameDatagram, length: len(p)}.append(b), p...)
	}
	return b, nil
}

// writeLoose writes loose frames until the session ends.
func (s *Session) writeLoose() {
	var b []byte
	for {
		select {
		case <-s.loose.ready:
		case <-s.done:
			return
		}
		for more := true; more; {
			if !s.takeTurn() {
				return
			}
			var err error
			b, err = s.loose.gather(b[:0])
			more = len(b) > 0
			if err == nil && more {
				err = s.frame(nil, b, time.Time{})
			}
			s.releaseTurn()
			if err != nil {
				s.fail(err)
			}
		}
	}
}

func (s *Session) takeTurn() bool {
	select {
	case s.turn <- struct{}{}:
		return true
	case <-s.done:
		return false
	}
}

func (s *Session) releaseTurn() { <-s.turn }

// write sends one frame of a stream; the caller has the turn.
func (s *Session) write(h header, body []byte, by time.Time) error {
	h.put(&s.head)
	return s.frame(s.head[:], body, by)
}

// frame writes to the connection; the caller has the turn. A failure ends the session:
// nobody can know how much of the frame the peer has.
func (s *Session) frame(head, body []byte, by time.Time) error {
	err := s.setLimit(by)
	if err == nil {
		err = s.conn.WriteFrame(head, body)
	}
	if err != nil {
		s.fail(err)
		return s.Err()
	}
	return nil
}

// setLimit bounds the next write by the sooner of by and writeTimeout. A limit that is far
// enough away is kept, because each costs a timer.
func (s *Session) setLimit(by time.Time) error {
	now := time.Now()
	if by.IsZero() && s.limit.Sub(now) > writeTimeout/2 {
		return nil
	}
	limit := now.Add(writeTimeout)
	if !by.IsZero() && by.Before(limit) {
		limit = by
	}
	s.limit = limit
	return s.conn.SetWriteDeadline(limit)
}
