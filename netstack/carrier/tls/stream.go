package tls

import (
	"time"

	"github.com/hashicorp/yamux"

	"github.com/postern-zt/postern/netstack/carrier"
)

// A stream that was busy gives its buffer back after quietReads reads below quietRead;
// one alone is only the rest of a burst.
const (
	quietRead  = 2 << 10
	quietReads = 8
)

// stream adapts a yamux stream, whose Close ends only our direction.
type stream struct {
	*yamux.Stream
	c *Carrier
	// Used by the reader alone.
	busy  bool
	quiet int
}

var _ carrier.Stream = (*stream)(nil)

// Read reads, and frees the receive buffer of a stream that fell quiet: yamux keeps it
// at its largest size otherwise.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if n > quietRead {
		s.busy, s.quiet = true, 0
	} else if s.busy {
		if s.quiet++; s.quiet == quietReads {
			s.busy, s.quiet = false, 0
			s.Shrink()
		}
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
