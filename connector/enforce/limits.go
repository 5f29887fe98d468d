package enforce

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
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

// limits keeps the accounts of grants that are limited in flows, in rate or in idleness.
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
	// moved says that a byte passed since it was last asked; an atomic, because every read
	// and write of every flow sets it.
	moved atomic.Bool
}

// limited reports whether the grant needs an account.
func limited(g *grant.Grant) bool { return g.Flows != 0 || g.BytesPerSecond != 0 || g.Idle != 0 }

// open takes a flow of the grant; false when it has no more.
func (l *limits) open(g *grant.Grant) bool {
	if !limited(g) {
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
			if u.flows == 0 && now.Sub(u.last) > usageKept && !u.moved.Load() {
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

// wrap watches conn for a grant with an idle limit, and holds it to the rate of the grant,
// which all its flows share; conn as it is for a grant with neither.
func (l *limits) wrap(ctx context.Context, g *grant.Grant, conn net.Conn) net.Conn {
	if g.BytesPerSecond == 0 && g.Idle == 0 || conn == nil {
		return conn
	}
	l.mu.Lock()
	u := l.usageLocked(g, time.Now())
	l.mu.Unlock()
	if g.Idle != 0 {
		u.moved.Store(true)
		conn = &watchedConn{Conn: conn, moved: &u.moved}
	}
	if g.BytesPerSecond == 0 {
		return conn
	}
	p := &pacedConn{Conn: conn, up: u.up, down: u.down}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx)) // ctx is that of the dial
	return p
}

// active returns the grants on which something moved since it was last asked.
func (l *limits) active() []ids.GrantID {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []ids.GrantID
	for id, u := range l.grants {
		if u.moved.Load() && u.moved.Swap(false) {
			out = append(out, id)
		}
	}
	return out
}

func (l *limits) activeAgain(list []ids.GrantID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range list {
		if u := l.grants[id]; u != nil {
			u.moved.Store(true)
		}
	}
}

// watchedConn is an app's connection that notes that something moves.
type watchedConn struct {
	net.Conn
	moved *atomic.Bool
}

// note sets the flag where it is not set: many flows share it.
func (c *watchedConn) note(n int) {
	if n > 0 && !c.moved.Load() {
		c.moved.Store(true)
	}
}

// Read notes what came from the app.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.note(n)
	return n, err
}

// Write notes what went to the app.
func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.note(n)
	return n, err
}

// CloseWrite passes a half-close on where the app's connection has one.
func (c *watchedConn) CloseWrite() error { return closeWrite(c.Conn) }

// SetLinger passes on how a connection ends: a reset must stay one.
func (c *watchedConn) SetLinger(seconds int) error { return setLinger(c.Conn, seconds) }

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
func (c *pacedConn) CloseWrite() error { return closeWrite(c.Conn) }

// SetLinger passes on how a connection ends: a reset must stay one.
func (c *pacedConn) SetLinger(seconds int) error { return setLinger(c.Conn, seconds) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func setLinger(conn net.Conn, seconds int) error {
	if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(seconds)
	}
	return nil
}
