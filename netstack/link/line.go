package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
)

const (
	// greetTimeout bounds the hello exchange and the first frame of every stream.
	greetTimeout = 10 * time.Second
	// controlTimeout bounds one write on the control stream.
	controlTimeout = 10 * time.Second
)

// line is one carrier with its control stream, at either end.
type line struct {
	name  string
	c     carrier.Carrier
	since time.Time
	hello frame.Hello // the peer's

	wmu sync.Mutex // serialises writes on ctl
	ctl carrier.Stream

	heard atomic.Uint64 // bytes read, by all streams; proof of life
	wrote atomic.Bool   // something was written since the watch last looked
	kick  chan struct{} // length 1: wakes the watch on the first write after silence

	pmu   sync.Mutex // guards pings
	pings map[uint64]chan struct{}
	next  uint64
	rtt   atomic.Int64 // nanoseconds, smoothed

	dead chan struct{}
	once sync.Once
	err  error // set before dead is closed
}

func newLine(name string, c carrier.Carrier) *line {
	return &line{
		name: name, c: c, since: time.Now(), kick: make(chan struct{}, 1),
		pings: make(map[uint64]chan struct{}), dead: make(chan struct{}),
	}
}

// kill ends the line and its carrier; every stream on it fails. It waits for the
// carrier's goroutines.
func (l *line) kill(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.dead)
	})
	_ = l.c.Close() // the reason is err
}

// write sends one control frame and expects a sign of life soon; a failure ends the line.
func (l *line) write(b []byte) error {
	l.touch()
	return l.send(b)
}

// send is write for the watch's own questions and answers.
func (l *line) send(b []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	_ = l.ctl.SetWriteDeadline(time.Now().Add(controlTimeout)) // a dead stream fails the write
	if _, err := l.ctl.Write(b); err != nil {
		return fmt.Errorf("write control frame: %w", err)
	}
	return nil
}

// touch notes that we wrote, so that silence from now on means something.
func (l *line) touch() {
	if !l.wrote.Load() && l.wrote.CompareAndSwap(false, true) {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
}

// greet exchanges hellos; the client speaks first.
func (l *line) greet(own frame.Hello, first bool) error {
	_ = l.ctl.SetReadDeadline(time.Now().Add(greetTimeout)) // checked by the read
	if first {
		if err := l.write(frame.AppendHello(nil, own)); err != nil {
			return err
		}
	}
	h, payload, err := readFrame(l.ctl)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	if h.Type != frame.TypeHello {
		return fmt.Errorf("%w: type %d instead of a hello", ErrProtocol, h.Type)
	}
	if l.hello, err = frame.ParseHello(payload); err != nil {
		return err
	}
	if _, _, err = frame.Agree(own, l.hello); err != nil {
		return err
	}
	if !first {
		err = l.write(frame.AppendHello(nil, own))
	}
	_ = l.ctl.SetReadDeadline(time.Time{})
	return err
}

// readFrame reads one frame, checking its length before memory is taken.
func readFrame(r io.Reader) (frame.Header, []byte, error) {
	var head [frame.HeaderLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame.Header{}, nil, err
	}
	h, err := frame.ParseHeader(head[:])
	if err != nil || h.Length == 0 {
		return h, nil, err
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return h, nil, err
	}
	return h, payload, nil
}

// readControl hands every control frame to handle until the stream ends. It answers
// pings itself.
func (l *line) readControl(handle func(frame.Header, []byte) error) error {
	counted := &countedStream{Stream: l.ctl, l: l}
	for {
		h, payload, err := readFrame(counted)
		if err != nil {
			return fmt.Errorf("read control stream: %w", err)
		}
		switch h.Type {
		case frame.TypePing:
			err = l.send(frame.AppendPong(nil, h.Value))
		case frame.TypePong:
			l.pong(h.Value)
		default:
			err = handle(h, payload)
		}
		if err != nil {
			return err
		}
	}
}

// ping measures one round trip.
func (l *line) ping(ctx context.Context) (time.Duration, error) {
	done := make(chan struct{})
	l.pmu.Lock()
	l.next++
	id := l.next
	l.pings[id] = done
	l.pmu.Unlock()
	defer func() {
		l.pmu.Lock()
		delete(l.pings, id)
		l.pmu.Unlock()
	}()
	start := time.Now()
	if err := l.send(frame.AppendPing(nil, id)); err != nil {
		return 0, err
	}
	select {
	case <-done:
		d := time.Since(start)
		l.noteRTT(d)
		return d, nil
	case <-l.dead:
		return 0, ErrNoCarrier
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func (l *line) noteRTT(sample time.Duration) {
	old := time.Duration(l.rtt.Load())
	if old != 0 {
		sample = old + (sample-old)/8
	}
	l.rtt.Store(int64(sample))
}

func (l *line) pong(id uint64) {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	if done, ok := l.pings[id]; ok {
		delete(l.pings, id)
		close(done)
	}
}

// countedStream tells the line about every byte, so that a carrier that moves bytes is
// never taken for dead (rule 19).
type countedStream struct {
	carrier.Stream
	l *line
}

var _ flow.Stream = (*countedStream)(nil)

func (s *countedStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if n > 0 {
		s.l.heard.Add(uint64(n))
	}
	return n, err
}

func (s *countedStream) Write(p []byte) (int, error) {
	s.l.touch()
	return s.Stream.Write(p)
}

// unknownFrame is the verdict on a control frame that a side does not handle.
func unknownFrame(h frame.Header) error {
	if h.Flags&frame.Optional != 0 {
		return nil
	}
	return fmt.Errorf("%w: frame type %d on the control stream", ErrProtocol, h.Type)
}

// hangUp is the error of a line that ended without anyone's fault.
func hangUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed)
}
