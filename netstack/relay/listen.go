package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/relay/wire"
)

// handshakeTimeout bounds the outer TLS handshake.
const handshakeTimeout = 10 * time.Second

// TLSConfig returns the outer TLS of a relay that has a port of its own: TLS 1.3, our
// ALPN alone, no session tickets.
func TLSConfig(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{wire.ALPN},
		SessionTicketsDisabled: true,
		GetCertificate:         certificate,
	}
}

// ServeTCP accepts connections on l, for a relay that has the port for itself, until ctx
// ends; it closes l and returns after the last connection. A connection that is not TLS
// gets nothing.
func (r *Relay) ServeTCP(ctx context.Context, l net.Listener, conf *tls.Config) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept reports it
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relay tcp: %w", err)
		case err != nil: // out of descriptors; others may close theirs
			r.drops.count(DropLimit)
			pause(ctx, acceptRetry)
			continue
		}
		select {
		case r.greetings <- struct{}{}:
			wg.Go(func() { r.shake(ctx, c, conf) })
		default:
			r.drops.count(DropLimit)
			_ = c.Close()
		}
	}
}

// acceptRetry is how long accepting rests after a passing error.
const acceptRetry = 50 * time.Millisecond

// shake does the outer handshake in one of the places for strangers and serves.
func (r *Relay) shake(ctx context.Context, c net.Conn, conf *tls.Config) {
	tc := tls.Server(wire.NewRecordConn(c), conf)
	shakeCtx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	err := tc.HandshakeContext(shakeCtx)
	cancel()
	<-r.greetings
	if err != nil {
		r.drops.count(DropProtocol)
		_ = c.Close()
		return
	}
	if err := r.ServeConn(ctx, tc); err != nil {
		r.log.Debug("relay connection refused", "error", err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
