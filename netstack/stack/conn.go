package stack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is the connection of one local program. Read and Write are for one
// goroutine each; everything else may be called from any.
type Conn struct {
	stack         *Stack
	ep            tcpip.Endpoint
	wq            *waiter.Queue
	local, remote netip.AddrPort
	read, write   side
	closed        atomic.Bool
}

var _ net.Conn = (*Conn)(nil)

// side is one direction: its waiter and its deadline.
type side struct {
	ready    chan struct{} // filled by the waiter
	entry    waiter.Entry
	deadline deadline
}

func newConn(s *Stack, ep tcpip.Endpoint, wq *waiter.Queue, local, remote netip.AddrPort) *Conn {
	c := &Conn{stack: s, ep: ep, wq: wq, local: local, remote: remote}
	c.read.register(wq, waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr)
	c.write.register(wq, waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	return c
}

func (d *side) register(wq *waiter.Queue, mask waiter.EventMask) {
	d.deadline.init()
	d.entry, d.ready = waiter.NewChannelEntry(mask)
	wq.EventRegister(&d.entry)
}

// wait returns when the endpoint has news or the deadline is over.
func (d *side) wait() {
	select {
	case <-d.ready:
	case <-d.deadline.done():
	}
}

// overError says why the deadline is over: Close moves it into the past.
func (c *Conn) overError() error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return os.ErrDeadlineExceeded
}

// Read returns io.EOF when the program closed its side, syscall.ECONNRESET when it
// reset.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.read.deadline.over() {
			return 0, c.opError("read", c.overError())
		}
		w := tcpip.SliceWriter(p)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
			c.read.wait()
		case *tcpip.ErrClosedForReceive:
			if c.closed.Load() {
				return 0, c.opError("read", net.ErrClosed)
			}
			return 0, io.EOF
		default:
			return 0, c.opError("read", errnoOf(err))
		}
	}
}

// Write returns after all of p is in the send buffer.
func (c *Conn) Write(p []byte) (int, error) {
	var r bytes.Reader
	for n := 0; n < len(p); {
		if c.write.deadline.over() {
			return n, c.opError("write", c.overError())
		}
		r.Reset(p[n:])
		written, err := c.ep.Write(&r, tcpip.WriteOptions{})
		n += int(written)
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			c.write.wait()
		default:
			return n, c.opError("write", errnoOf(err))
		}
	}
	return len(p), nil
}

// CloseWrite sends FIN; reading goes on.
func (c *Conn) CloseWrite() error {
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return c.opError("close", errnoOf(err))
	}
	return nil
}

// Close ends the connection in the orderly way. Bytes already written still reach
// the program.
func (c *Conn) Close() error {
	c.end()
	c.ep.Close()
	return nil
}

// Abort ends the connection with RST: the program sees "connection reset".
func (c *Conn) Abort() {
	c.end()
	c.ep.Abort()
}

// end comes before the endpoint's own end, so that a waiting Read sees which it was.
func (c *Conn) end() {
	c.closed.Store(true)
	c.stack.conns.remove(c)
	c.read.deadline.set(aLongTimeAgo)
	c.write.deadline.set(aLongTimeAgo)
}

// aLongTimeAgo ends every wait.
var aLongTimeAgo = time.Unix(1, 0)

// LocalAddr is the app's address as the program knows it.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr is the program's address.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline ends the reads that are waiting at t.
func (c *Conn) SetReadDeadline(t time.Time) error { c.read.deadline.set(t); return nil }

// SetWriteDeadline ends the writes that are waiting at t.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.write.deadline.set(t); return nil }

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// errnoOf maps what callers branch on; the rest keeps its text.
func errnoOf(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrAborted, *tcpip.ErrConnectionAborted, *tcpip.ErrInvalidEndpointState, *tcpip.ErrNotConnected:
		return net.ErrClosed
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	default:
		return errors.New(err.String())
	}
}

// deadline is a moment that can be moved while somebody waits for it.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer   // guarded by mu
	cancel chan struct{} // closed at the deadline; guarded by mu
}

func (d *deadline) init() { d.cancel = make(chan struct{}) }

func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cancel
}

func (d *deadline) over() bool {
	select {
	case <-d.done():
		return true
	default:
		return false
	}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.cancel // the timer has fired: wait until it has closed
	}
	d.timer = nil
	closed := false
	select {
	case <-d.cancel:
		closed = true
	default:
	}
	if closed {
		d.cancel = make(chan struct{})
	}
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait <= 0:
		close(d.cancel)
	default:
		cancel := d.cancel
		d.timer = time.AfterFunc(wait, func() { close(cancel) })
	}
}
