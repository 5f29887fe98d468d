package quic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/netstack/relay/attach"
)

const (
	// datagramQueue is how many datagrams wait for the congestion controller; beyond it
	// the oldest is dropped: UDP programs prefer fresh over complete.
	datagramQueue = 256
	// datagramProbe is larger than any datagram that fits a QUIC packet.
	datagramProbe = 2048

	codeClosed  quicgo.ApplicationErrorCode = 0
	codeRefused quicgo.ApplicationErrorCode = 1
	codeAborted quicgo.StreamErrorCode      = 0
)

// Carrier is one QUIC connection with an authenticated peer.
type Carrier struct {
	conn    *quicgo.Conn
	peer    peer.Identity
	path    string
	end     func() error // what else ends with the carrier
	binding *attach.Binding

	out  chan []byte
	wg   sync.WaitGroup
	once sync.Once
	err  error // of Close; written inside once
}

var _ carrier.Carrier = (*Carrier)(nil)

// OpenStream opens a stream. The peer sees it with its first byte.
func (c *Carrier) OpenStream(ctx context.Context) (carrier.Stream, error) {
	s, err := c.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, fmt.Errorf("open quic stream: %w", err)
	}
	return &stream{Stream: s, conn: c.conn}, nil
}

// AcceptStream waits for a stream that the peer opened.
func (c *Carrier) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	s, err := c.conn.AcceptStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("accept quic stream: %w", err)
	}
	return &stream{Stream: s, conn: c.conn}, nil
}

// SendDatagram queues p; when the path is slower than the sender the oldest goes.
func (c *Carrier) SendDatagram(p []byte) error {
	if len(p) > c.MaxDatagram() {
		return carrier.ErrDatagramTooLarge
	}
	if err := c.Err(); err != nil {
		return err
	}
	b := append([]byte(nil), p...)
	for {
		select {
		case c.out <- b:
			return nil
		default:
		}
		select {
		case <-c.out:
		default:
		}
	}
}

// datagramLoop feeds quic-go, whose own queue blocks when it is full.
func (c *Carrier) datagramLoop() {
	for {
		select {
		case <-c.conn.Context().Done():
			return
		case b := <-c.out:
			// An error is a path that shrank or a connection that ended: a lost datagram.
			_ = c.conn.SendDatagram(b)
		}
	}
}

// ReceiveDatagram waits for one datagram.
func (c *Carrier) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	b, err := c.conn.ReceiveDatagram(ctx)
	if err != nil {
		return nil, fmt.Errorf("receive quic datagram: %w", err)
	}
	return b, nil
}

// MaxDatagram is the largest datagram that fits now; it grows with the path's MTU.
// quic-go tells it only in the error of a datagram that is too large.
func (c *Carrier) MaxDatagram() int {
	var probe [datagramProbe]byte
	var tooLarge *quicgo.DatagramTooLargeError
	if err := c.conn.SendDatagram(probe[:]); errors.As(err, &tooLarge) {
		return int(tooLarge.MaxDatagramPayloadSize)
	}
	return 0
}

// Peer is the authenticated identity at the other end.
func (c *Carrier) Peer() peer.Identity { return c.peer }

// Kind is carrier.QUIC.
func (*Carrier) Kind() carrier.Kind { return carrier.QUIC }

// Path says how the carrier went when it was opened.
func (c *Carrier) Path() string { return c.path }

// RTT is the smoothed round-trip time.
func (c *Carrier) RTT() time.Duration { return c.conn.ConnectionStats().SmoothedRTT }

// Rebind asks for a new mapping at the relay, because the network has changed.
func (c *Carrier) Rebind() {
	if c.binding != nil {
		c.binding.Rebind()
	}
}

// Done is closed when the carrier has died.
func (c *Carrier) Done() <-chan struct{} { return c.conn.Context().Done() }

// Err says why it died, nil while it lives.
func (c *Carrier) Err() error {
	if c.conn.Context().Err() == nil {
		return nil
	}
	return context.Cause(c.conn.Context())
}

// Close tells the peer, ends the carrier and waits for its goroutines. It is safe twice.
func (c *Carrier) Close() error {
	c.once.Do(func() {
		c.err = c.conn.CloseWithError(codeClosed, "")
		c.wg.Wait()
		if c.end != nil {
			c.err = errors.Join(c.err, c.end())
		}
		if c.binding != nil {
			c.err = errors.Join(c.err, c.binding.Close())
		}
	})
	return c.err
}

// stream adapts a QUIC stream to carrier.Stream.
type stream struct {
	*quicgo.Stream
	conn *quicgo.Conn
	mu   sync.Mutex // held by Write: quic-go forbids Close during it
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Stream.Write(p)
}

// CloseWrite ends our direction after what was written.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Stream.Close()
}

// Close ends our direction after what was written and refuses the peer's; a Write that
// is blocked returns an error.
func (s *stream) Close() error {
	s.CancelRead(codeAborted)
	_ = s.SetWriteDeadline(time.Unix(1, 0)) // a stream that has ended needs none
	return s.CloseWrite()
}

// Abort ends both directions at once.
func (s *stream) Abort() {
	s.CancelRead(codeAborted)
	s.CancelWrite(codeAborted)
}

func (s *stream) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s *stream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }
