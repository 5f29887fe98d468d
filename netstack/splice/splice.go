// Package splice joins two stream connections until both directions have ended, with
// half close both ways, live byte counts and a cut that takes effect at once. The relay
// uses it for raw connections (where the kernel moves the bytes, splice(2) on Linux) and
// any part that has two sockets to join may. It must not look at the bytes.
//
// A Pair is safe for concurrent use; Run is called once.
package splice

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

const (
	// chunk bounds one kernel copy, so that counters follow a long transfer and a rate
	// limit is smooth: 1 MiB costs nothing measurable against an unbounded copy.
	chunk = 1 << 20
	// burst is what a limited direction may send at once.
	burst = 256 << 10
)

// ErrCut is the result of a Pair that Cut has ended.
var ErrCut = errors.New("connection cut")

// Conn is a connection whose directions end one by one, like *net.TCPConn.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Pair is two connections being joined.
type Pair struct {
	a, b     Conn
	rate     uint64
	forward  *atomic.Uint64
	backward *atomic.Uint64

	once sync.Once
	cut  atomic.Bool
}

// New returns the pair; forward counts bytes from a to b, backward those from b to a
// (nil: not counted), bytesPerSecond bounds each direction (0: unlimited).
func New(a, b Conn, bytesPerSecond uint64, forward, backward *atomic.Uint64) *Pair {
	if forward == nil {
		forward = new(atomic.Uint64)
	}
	if backward == nil {
		backward = new(atomic.Uint64)
	}
	return &Pair{a: a, b: b, rate: bytesPerSecond, forward: forward, backward: backward}
}

// Run moves bytes until both directions have ended, one has failed, or ctx is done or
// Cut is called; then both connections are closed. An orderly end returns nil. A failure
// resets both ends, so that neither takes a broken stream for a finished one.
func (p *Pair) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.Cut)
	defer stop()
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = p.half(ctx, p.b, p.a, p.forward) })
	wg.Go(func() { errs[1] = p.half(ctx, p.a, p.b, p.backward) })
	wg.Wait()
	p.close(false)
	if p.cut.Load() {
		return ErrCut
	}
	return errors.Join(errs[0], errs[1])
}

// Cut resets both connections at once. It is safe at any time and more than once.
func (p *Pair) Cut() {
	p.cut.Store(true)
	p.close(true)
}

// half moves one direction; its failure ends the other direction too.
func (p *Pair) half(ctx context.Context, dst, src Conn, count *atomic.Uint64) error {
	err := p.copy(ctx, dst, src, count)
	if err == nil {
		err = ignoreGone(dst.CloseWrite())
	}
	if err != nil {
		p.close(true)
	}
	return err
}

func (p *Pair) copy(ctx context.Context, dst, src Conn, count *atomic.Uint64) error {
	limit, wait := p.pace()
	for {
		n, err := io.Copy(dst, &io.LimitedReader{R: src, N: limit})
		count.Add(uint64(n))
		if err != nil || n < limit {
			return err
		}
		if err := wait(ctx, n); err != nil {
			return err
		}
	}
}

// pace returns the size of one copy and what to wait for after it.
func (p *Pair) pace() (int64, func(context.Context, int64) error) {
	if p.rate == 0 {
		return chunk, func(context.Context, int64) error { return nil }
	}
	size := int64(min(burst, max(p.rate/8, 1)))
	limiter := rate.NewLimiter(rate.Limit(p.rate), int(size))
	return size, func(ctx context.Context, n int64) error { return limiter.WaitN(ctx, int(n)) }
}

func (p *Pair) close(reset bool) {
	p.once.Do(func() {
		for _, c := range []Conn{p.a, p.b} {
			if l, ok := c.(interface{ SetLinger(int) error }); ok && reset {
				_ = l.SetLinger(0) // a connection that is gone already needs no reset
			}
			_ = c.Close() // nothing is buffered here that a close could lose
		}
	})
}

// ignoreGone drops the error of a half close whose peer has gone altogether.
func ignoreGone(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "close" && !errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
