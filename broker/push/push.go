// Package push wakes the control streams of clients, connectors and relays. A stream is
// told which kinds of state have changed for it and reads them anew from their owners, so
// nothing is queued that could be lost or grow: being slow only means to be told once
// instead of ten times (DESIGN section 2).
//
// controlapi subscribes one stream per caller; whoever changes state marks. A Hub is safe
// for concurrent use and starts no goroutine.
package push

import (
	"context"
	"errors"
	"sync"
)

// Mark is a set of kinds of state that a stream must send again.
type Mark uint32

// The kinds of state.
const (
	Keys Mark = 1 << iota
	Assignment
	Statement
	Relays
	Catalog
	Session
	Grants
	Cuts
	Reconnect

	// Everything is what a stream sends when it starts.
	Everything Mark = Keys | Assignment | Statement | Relays | Catalog | Session
)

// Has reports whether all kinds of k are in m.
func (m Mark) Has(k Mark) bool { return m&k == k }

// ErrSuperseded ends a stream when its caller has opened a newer one.
var ErrSuperseded = errors.New("a newer stream of the same caller took over")

// Hub holds the streams of one kind of caller, by its id.
type Hub[K comparable] struct {
	mu      sync.Mutex
	streams map[K]*Stream[K]
}

// NewHub returns a hub without streams.
func NewHub[K comparable]() *Hub[K] { return &Hub[K]{streams: make(map[K]*Stream[K])} }

// Stream is one caller's subscription; one goroutine calls Next.
type Stream[K comparable] struct {
	hub *Hub[K]
	key K
	// pending and superseded are guarded by hub.mu; wake has length 1.
	pending    Mark
	superseded bool
	wake       chan struct{}
}

// Subscribe opens the caller's stream, which starts with Everything pending, and ends an
// older one of the same caller. Close it when done.
func (h *Hub[K]) Subscribe(key K) *Stream[K] {
	s := &Stream[K]{hub: h, key: key, pending: Everything, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.streams[key]; old != nil {
		old.superseded = true
		old.signal()
	}
	h.streams[key] = s
	s.signal()
	return s
}

// Close ends the subscription.
func (s *Stream[K]) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.hub.streams[s.key] == s {
		delete(s.hub.streams, s.key)
	}
}

// Next waits for marks and takes them.
func (s *Stream[K]) Next(ctx context.Context) (Mark, error) {
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-s.wake:
		}
		s.hub.mu.Lock()
		m, gone := s.pending, s.superseded
		s.pending = 0
		s.hub.mu.Unlock()
		if gone {
			return 0, ErrSuperseded
		}
		if m != 0 {
			return m, nil
		}
	}
}

// signal wakes Next; a second signal before it ran adds nothing.
func (s *Stream[K]) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Mark tells the caller's stream, if there is one, that kinds of state have changed.
func (h *Hub[K]) Mark(key K, m Mark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.streams[key]; s != nil {
		s.pending |= m
		s.signal()
	}
}

// MarkAll tells every stream.
func (h *Hub[K]) MarkAll(m Mark) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.streams {
		s.pending |= m
		s.signal()
	}
}

// Online reports whether the caller has a stream.
func (h *Hub[K]) Online(key K) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams[key] != nil
}

// Keys lists the callers with a stream.
func (h *Hub[K]) Keys() []K {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]K, 0, len(h.streams))
	for k := range h.streams {
		out = append(out, k)
	}
	return out
}
