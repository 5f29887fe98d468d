// Package ipc is the local socket between a daemon of Postern and the commands
// of people on the same machine, and the question which user owns a network
// socket.
//
// Who calls is what the kernel says: [Listener] attaches the credentials of each
// caller, [ConnContext] carries them into HTTP requests, [PeerFrom] reads them.
// A connection whose credentials cannot be read is closed unseen. What a caller
// may do is decided by the API on top, never here.
//
// A Listener is safe for concurrent use, like every [net.Listener].
package ipc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Errors a caller branches on.
var (
	// ErrInUse says that another living process serves the socket.
	ErrInUse = errors.New("another process serves this socket")
	// ErrNotRunning says that nobody serves the socket.
	ErrNotRunning = errors.New("nobody serves this socket")
	// ErrNoOwner says that no socket matches the asked addresses.
	ErrNoOwner = errors.New("no socket with these addresses")
)

// dialWait bounds a connect to a local socket: it is answered at once or the
// server's queue is full.
const dialWait = 3 * time.Second

// Peer is who is at the other end of a local connection, by the kernel's word.
// The ids are those at the time of the connect.
type Peer struct {
	UID uint32
	GID uint32
	// PID serves logs only: the process may have ended and the number may mean
	// another one now.
	PID int32
}

// Conn is an accepted connection with its caller.
type Conn struct {
	net.Conn
	peer Peer
}

// Peer tells who called.
func (c *Conn) Peer() Peer { return c.peer }

type peerKey struct{}

// ConnContext puts the caller of c into ctx. It is made for the field ConnContext
// of [http.Server]; a connection that did not come from a [Listener] adds nothing.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	local, ok := c.(*Conn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, local.peer)
}

// PeerFrom gives the caller that [ConnContext] stored. Without one the request
// did not come over the local socket and must be refused.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// Dial connects to the socket at path. The error is [ErrNotRunning] when nobody
// serves it.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialWait}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return conn, nil
	}
	if isNotRunning(err) {
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, path)
	}
	return nil, fmt.Errorf("connect to local socket: %w", err)
}

// Transport gives an HTTP transport on which every request goes to the socket at
// path, whatever host its URL names. The caller closes its idle connections.
func Transport(path string) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, path) },
	}
}
