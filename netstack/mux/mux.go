// Package mux carries many byte streams and datagrams over one ordered, encrypted
// connection. carrier/tls uses it between device and connector. It knows neither TLS nor
// flows.
//
//	Stream.Write --turn--> Conn.WriteFrame          the writer's own goroutine, no queue
//	Stream.Read <-- chunks <-- Session.read <-- Conn.Read
//
// It has no credit of its own, because what it carries has: a flow never has more in
// flight than its peer can hold (decisions rule 16). A stream that is not read all the
// same stops the session's reader, and so its own peer and nobody else, until the reader
// catches up or stallTimeout ends the session.
//
// A Session is safe for concurrent use. Run owns its goroutines. A Stream has one reader
// and one writer at a time; everything else may be called from any goroutine.
package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// writeTimeout bounds one frame on the connection; it is long because a slow path is
	// not a dead one: who uses the session finds silence much earlier.
	writeTimeout = 60 * time.Second
	// stallTimeout is how long a stream that nobody reads may stop the session.
	stallTimeout = 30 * time.Second
	// pingInterval is how often the round trip is measured.
	pingInterval = 15 * time.Second
	// acceptBacklog bounds the streams that wait for AcceptStream.
	acceptBacklog = 1024
	// maxStreams bounds the streams that the peer may hold open.
	maxStreams = 8192
)

// Errors that callers branch on.
var (
	// ErrReset says that the peer has ended a stream in both directions.
	ErrReset = errors.New("stream reset by the peer")
	// ErrDatagramTooLarge says that a datagram is larger than MaxDatagram.
	ErrDatagramTooLarge = errors.New("datagram too large")

	errProtocol = errors.New("peer breaks the stream protocol")
	errStalled  = errors.New("a stream was not read in time")
	errFlooded  = errors.New("the peer does not take our resets")
)

// Conn is what a session needs of its connection. One goroutine reads, one at a time
// writes.
type Conn interface {
	io.Reader
	// WriteFrame writes head and body, either may be empty, in one go.
	WriteFrame(head, body []byte) error
	SetWriteDeadline(t time.Time) error
	// Close ends a Read and a WriteFrame in progress. Safe twice.
	Close() error
}

// Session is one connection with its streams.
type Session struct {
	conn   Conn
	first  uint32        // our first stream id; the peer's are those of the other parity
	turn   chan struct{} // length 1: who has put the token may write to conn
	accept chan *Stream
	done   chan struct{}

	loose     looseFrames
	datagrams chan []byte
	rtt       atomic.Int64 // nanoseconds, smoothed; written by the reader alone

	// What all streams hold unread, counted by the session's reader and theirs.
	held    atomic.Int64
	starved atomic.Bool   // the session's reader waits for room
	room    chan struct{} // length 1: it looks again

	// Used by who has the turn.
	head  [headerLen]byte
	limit time.Time // the write deadline of conn

	mu      sync.Mutex // guards the fields below
	streams map[uint32]*Stream
	next    uint32 // our next id
	latest  uint32 // the highest id of the peer
	foreign int    // streams of the peer in streams
	err     error  // set before done is closed
}

// New returns a session over conn, which it owns; Run does the work. The side that
// dialled is the client.
func New(conn Conn, client bool) *Session {
	s := &Session{
		conn: conn, first: 2, turn: make(chan struct{}, 1), accept: make(chan *Stream, acceptBacklog), done: make(chan struct{}),
		datagrams: make(chan []byte, datagramQueue), room: make(chan struct{}, 1), streams: make(map[uint32]*Stream),
	}
	if client {
		s.first = 1
	}
	s.next = s.first
	s.loose.ready = make(chan struct{}, 1)
	return s
}

// Run works until the connection ends or Close is called, and returns why.
func (s *Session) Run() error {
	var work sync.WaitGroup
	work.Go(s.writeLoose)
	work.Go(s.pings)
	s.fail(s.read())
	work.Wait()
	return s.Err()
}

// OpenStream returns a new stream. The peer sees it with its first byte.
func (s *Session) OpenStream() (*Stream, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	return newStream(s, 0), nil
}

// AcceptStream waits for a stream of the peer.
func (s *Session) AcceptStream(ctx context.Context) (*Stream, error) {
	select {
	case st := <-s.accept:
		return st, nil
	case <-s.done:
		return nil, s.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// RTT is the smoothed round-trip time, zero before the first measurement.
func (s *Session) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

// Done is closed when the session has ended; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil while the session lives; net.ErrClosed after Close or a clean end.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session and every stream; Run returns soon after. Safe twice.
func (s *Session) Close() error {
	s.fail(net.ErrClosed)
	return nil
}

// fail ends the session for the first reason given. Each stream learns it once.
func (s *Session) fail(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = net.ErrClosed
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	streams := s.streams
	s.streams = nil
	close(s.done)
	s.mu.Unlock()
	_ = s.conn.Close() // the reason is err
	for _, st := range streams {
		st.end(err)
	}
}

// register gives a stream of ours its id. The caller has the turn, so ids go out in order.
func (s *Session) register(st *Stream) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	id := s.next
	if id > maxID {
		return 0, errors.New("stream ids of this session are used up")
	}
	s.next += 2
	s.streams[id] = st
	return id, nil
}

// forget drops a stream that has ended on both sides.
func (s *Session) forget(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.streams[id]; !ok {
		return
	}
	delete(s.streams, id)
	if s.isForeign(id) {
		s.foreign--
	}
}

func (s *Session) isForeign(id uint32) bool { return id%2 != s.first%2 }

// pings measures the round trip until the session ends.
func (s *Session) pings() {
	t := time.NewTicker(pingInterval)
	defer t.Stop()
	for {
		s.loose.ping(time.Now())
		select {
		case <-t.C:
		case <-s.done:
			return
		}
	}
}

// pong takes the answer to a ping; one that we did not ask for measures nothing.
func (s *Session) pong(nonce uint64) {
	sample, ok := s.loose.answered(nonce, time.Now())
	if !ok {
		return
	}
	if old := s.RTT(); old != 0 {
		sample = old + (sample-old)/8
	}
	s.rtt.Store(int64(sample))
}
