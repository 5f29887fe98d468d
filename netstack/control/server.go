package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/net/http2"
)

const (
	// idleTimeout ends a control connection without any stream.
	idleTimeout = 5 * time.Minute
	// requestTimeout bounds the time in which the body of a call arrives, not the call.
	requestTimeout = 30 * time.Second
	// maxStreams bounds the calls of one connection.
	maxStreams = 64
)

// Server serves control connections that the broker's port has accepted.
type Server struct {
	// Handler sees each request; PeerOf tells it who calls.
	Handler http.Handler
	http2   http2.Server
	base    http.Server
}

// NewServer returns a server for handler.
func NewServer(handler http.Handler) *Server {
	s := &Server{Handler: handler}
	s.http2 = http2.Server{
		MaxConcurrentStreams: maxStreams,
		IdleTimeout:          idleTimeout,
		ReadIdleTimeout:      pingAfter,
		PingTimeout:          pingTimeout,
		WriteByteTimeout:     pingTimeout,
	}
	s.base = http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), MaxHeaderBytes: 32 << 10, ReadTimeout: requestTimeout}
	return s
}

// ServeConn serves one connection whose handshake has negotiated ALPN; it returns when
// the connection has ended, at the latest when ctx does.
func (s *Server) ServeConn(ctx context.Context, conn *tls.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s.http2.ServeConn(conn, &http2.ServeConnOpts{Context: ctx, BaseConfig: &s.base, Handler: s.Handler})
}

// PeerOf returns the certificate that the caller of r has proved to hold, or nil.
func PeerOf(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}
