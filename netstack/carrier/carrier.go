// Package carrier declares what a link needs from the thing that moves its bytes: one
// mutually authenticated, end-to-end encrypted connection between a device and a
// connector that multiplexes streams and may send datagrams. carrier/quic and
// carrier/tls implement it; netstack/link uses it and never names a transport.
//
// A Carrier is safe for concurrent use. It must not know grants, flows or relays.
package carrier

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/postern-zt/postern/netstack/peer"
)

// Kind names a transport in logs, metrics and status.
type Kind string

// The transports of this release.
const (
	QUIC Kind = "quic"
	TLS  Kind = "tls"
)

// ErrDatagramTooLarge says that a datagram does not fit the carrier's present maximum;
// the caller cuts it into pieces of at most MaxDatagram bytes.
var ErrDatagramTooLarge = errors.New("datagram too large for this carrier")

// Stream is one bidirectional byte stream on a carrier.
type Stream interface {
	net.Conn
	// CloseWrite ends our direction; the peer reads io.EOF after the last byte.
	CloseWrite() error
	// Abort ends both directions at once and discards what was not sent.
	Abort()
}

// Carrier is one live association with an authenticated peer.
type Carrier interface {
	// OpenStream opens a stream; it waits for the peer's stream limit until ctx ends.
	OpenStream(ctx context.Context) (Stream, error)
	// AcceptStream waits for a stream that the peer opened.
	AcceptStream(ctx context.Context) (Stream, error)
	// SendDatagram sends p, best effort: it never blocks on a slow path but drops (on
	// the tls carrier the oldest queued datagram). p is not kept.
	SendDatagram(p []byte) error
	// ReceiveDatagram waits for one datagram; the slice belongs to the caller.
	ReceiveDatagram(ctx context.Context) ([]byte, error)
	// MaxDatagram is the largest datagram that SendDatagram takes at present.
	MaxDatagram() int
	// Peer is the authenticated identity at the other end.
	Peer() peer.Identity
	// Kind names the transport, Path says how it goes ("relay rly_... 192.0.2.1:443").
	Kind() Kind
	Path() string
	// RTT is the smoothed round-trip time, zero when it is not known yet.
	RTT() time.Duration
	// Done is closed when the carrier has died; Err then says why.
	Done() <-chan struct{}
	Err() error
	// Close ends the carrier and waits for its goroutines. Safe twice.
	Close() error
}
