package enforce

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// burst is what a paced grant may move at once: the largest datagram must fit.
	burst = frame.MaxDatagram + 1
	// usageKept is how long an unused grant's account is kept, so that opening flows anew
	// gives no new burst; swept at most as often.
	usageKept = 5 * time.Minute
)

// limits keeps the accounts of grants that are limited in flows or in rate.
type limits struct {
	mu     sync.Mutex // guards the fields below
	grants map[ids.GrantID]*usage
	swept  time.Time
}

// usage is what all flows of one grant share.
type usage struct {
	flows    uint32
	last     time.Time
	up, down *rate.Limiter
}

// open takes a flow of the grant; false when it has no more.
func (l *limits) open(g *grant.Grant) bool {
	if g.Flows == 0 && g.BytesPerSecond == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.usageLocked(g, time.Now())
	if g.Flows != 0 && u.flows >= g.Flows {
		return false
	}
	u.flows++
	return true
}

// close gives a flow back.
func (l *limits) close(g *grant.Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.grants[g.ID]; u != nil {
		u.flows--
		u.last = time.Now()
	}
}

func (l *limits) usageLocked(g *grant.Grant, now time.Time) *usage {
	if now.Sub(l.swept) > usageKept {
		l.swept = now
		for id, u := range l.grants {
			if u.flows == 0 && now.Sub(u.last) > usageKept {
				delete(l.grants, id)
			}
		}
	}
	u := l.grants[g.ID]
	if u == nil {
		if l.grants == nil {
			l.grants = make(map[ids.GrantID]*usage)
		}
		perSecond := rate.Limit(g.BytesPerSecond)
		u = &usage{last: now, up: rate.NewLimiter(perSecond, burst), down: rate.NewLimiter(perSecond, burst)}
		l.grants[g.ID] = u
	}
	return u
}

// pace holds conn to the rate of the grant, which all its flows share; conn as it is for a
// grant without one.
func (l *limits) pace(ctx context.Context, g *grant.Grant, conn net.Conn) net.Conn {
	if g.BytesPerSecond == 0 || conn == nil {
		return conn
	}
	l.mu.Lock()
	u := l.usageLocked(g, time.Now())
	l.mu.Unlock()
	p := &pacedConn{Conn: conn, up: u.up, down: u.down}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx)) // ctx is that of the dial
	return p
}

// pacedConn is an app's connection that moves no faster than its grant may.
type pacedConn struct {
	net.Conn
	up, down *rate.Limiter
	// ctx ends with Close, which wakes whoever waits for the rate.
	ctx    context.Context
	cancel context.CancelFunc
}

// Read reads what the rate has room for; a datagram is never cut.
func (c *pacedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), burst)])
	if n > 0 && c.down.WaitN(c.ctx, n) != nil {
		return 0, net.ErrClosed
	}
	return n, err
}

// Write writes in pieces that the rate has room for; a datagram is never cut.
func (c *pacedConn) Write(p []byte) (int, error) {
	done := 0
	for {
		piece := p[done:min(done+burst, len(p))]
		if c.up.WaitN(c.ctx, len(piece)) != nil {
			return done, net.ErrClosed
		}
		n, err := c.Conn.Write(piece)
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

// Close ends waiting calls as well.
func (c *pacedConn) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// CloseWrite passes a half-close on where the app's connection has one.
func (c *pacedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// SetLinger passes on how a connection ends: a reset must stay one.
func (c *pacedConn) SetLinger(seconds int) error {
	if tcp, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(seconds)
	}
	return nil
}
