package tls

import (
	"time"

	"github.com/hashicorp/yamux"

	"github.com/postern-zt/postern/netstack/carrier"
)

// quietRead is a read below which a stream that was busy gives its buffer back.
const quietRead = 2 << 10

// stream adapts a yamux stream, whose Close ends only our direction.
type stream struct {
	*yamux.Stream
	c    *Carrier
	busy bool // used by the reader alone
}

var _ carrier.Stream = (*stream)(nil)

// Read reads, and frees the receive buffer of a stream that fell quiet: yamux keeps it
// at its largest size otherwise.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if n > quietRead {
		s.busy = true
	} else if s.busy {
		s.busy = false
		s.Shrink()
	}
	if err != nil {
		err = s.c.wrap(err)
	}
	return n, err
}

// Write writes. A write that timed out leaves the peer's reader hanging in yamux, so it
// ends the carrier.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	if err == yamux.ErrConnectionWriteTimeout { //nolint:errorlint // yamux returns the bare value
		s.c.background(func() { s.c.fail(err) })
	}
	if err != nil {
		err = s.c.wrap(err)
	}
	return n, err
}

// CloseWrite ends our direction.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends our direction and stops reading.
func (s *stream) Close() error {
	_ = s.SetReadDeadline(time.Unix(1, 0)) // cannot fail
	return s.Stream.Close()
}

// Abort ends both directions without waiting: yamux's Close may wait for a connection
// that no longer moves.
func (s *stream) Abort() {
	_ = s.SetDeadline(time.Unix(1, 0)) // cannot fail
	s.c.background(func() { _ = s.Stream.Close() })
}
