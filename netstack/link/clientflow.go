package link

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
)

// retryPause keeps a flow from spinning on a line that is about to be found dead.
const retryPause = 50 * time.Millisecond

// clientFlow is one flow at the client.
type clientFlow struct {
	c       *Client
	id      uint64
	ref     GrantRef
	connect time.Duration
	tcp     *flow.Flow
	udp     *flow.Packets
	// Used by keep alone.
	epoch  uint32
	closed bool // the connector has ended the flow well
	line   lineRef
}

func (f *clientFlow) abort(code frame.Code) {
	if f.tcp != nil {
		f.tcp.Abort(code)
		return
	}
	f.udp.Abort(code)
}

func (f *clientFlow) stats() flow.Stats {
	if f.tcp != nil {
		return f.tcp.Stats()
	}
	return f.udp.Stats()
}

func (f *clientFlow) isAttached() bool {
	if f.tcp != nil {
		return f.tcp.Attached()
	}
	return f.line.get() != nil
}

func (f *clientFlow) done() <-chan struct{} {
	if f.tcp != nil {
		return f.tcp.Done()
	}
	return f.udp.Done()
}

func (f *clientFlow) err() error {
	if f.tcp != nil {
		return f.tcp.Err()
	}
	return f.udp.Err()
}

// open asks for a flow until the connector answers, on whatever line there is. The id
// stays the same, so the app is dialled once.
func (c *Client) open(ctx context.Context, o frame.Open) (*clientFlow, error) {
	c.mu.Lock()
	c.nextFlow++
	o.Flow = c.nextFlow
	c.mu.Unlock()
	o.Window = c.cfg.Memory.Window()
	for {
		l, err := c.activeLine(ctx)
		if err != nil {
			return nil, err
		}
		o.Epoch++
		f, err := c.tryOpen(ctx, l, o)
		if err == nil {
			return f, nil
		}
		if isRefusal(err) {
			return nil, err
		}
		if ctx.Err() != nil {
			c.owe(o.Flow, frame.Reset)
			return nil, fmt.Errorf("%w: %w", ErrNoCarrier, context.Cause(ctx))
		}
		c.pause(ctx, l)
	}
}

func isRefusal(err error) bool {
	_, ok := errors.AsType[*frame.Error](err)
	return ok
}

// pause waits for l to be found dead, but not long.
func (c *Client) pause(ctx context.Context, l *clientLine) {
	t := time.NewTimer(retryPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.dead:
	case <-ctx.Done():
	}
}

// tryOpen asks on one line. A *frame.Error is the connector's answer, anything else the
// line's fault.
func (c *Client) tryOpen(ctx context.Context, l *clientLine, o frame.Open) (*clientFlow, error) {
	if err := c.ensure(ctx, l, GrantRef(o.Ref)); err != nil {
		return nil, err
	}
	st, err := c.stream(ctx, l, frame.AppendOpen(nil, o))
	if err != nil {
		return nil, err
	}
	h, payload, err := readAnswer(ctx, l, st, frame.TypeOpened)
	if err != nil {
		st.Abort()
		return nil, err
	}
	opened, err := frame.ParseOpened(h, payload)
	if err == nil && opened.Code != frame.OK {
		err = &frame.Error{Code: opened.Code, Message: opened.Message}
	}
	if err != nil {
		_ = st.Close()
		return nil, err
	}
	return c.adopt(l, st, o, opened)
}

// ensure waits until the grant of ref was accepted on l.
func (c *Client) ensure(ctx context.Context, l *clientLine, ref GrantRef) error {
	c.mu.Lock()
	g := c.grants[ref]
	c.mu.Unlock()
	if g == nil {
		return frame.GrantUnknown.Err()
	}
	code, err := l.verdict(ctx, g)
	if err != nil {
		return err
	}
	return code.Err()
}

// stream opens a stream on l and writes its first frame.
func (c *Client) stream(ctx context.Context, l *clientLine, first []byte) (carrier.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	raw, err := l.c.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	st := &countedStream{Stream: raw, l: l.line}
	_ = st.SetWriteDeadline(time.Now().Add(greetTimeout)) // a dead stream fails the write
	if _, err := st.Write(first); err != nil {
		st.Abort()
		return nil, fmt.Errorf("write first frame: %w", err)
	}
	_ = st.SetWriteDeadline(time.Time{})
	return st, nil
}

// readAnswer reads the frame that answers the first one. The end of ctx and the end of
// the line end the wait.
func readAnswer(ctx context.Context, l *clientLine, st carrier.Stream, want frame.Type) (frame.Header, []byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = st.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	h, payload, err := readFrame(st)
	if err != nil {
		return h, nil, fmt.Errorf("read answer: %w", err)
	}
	if h.Type != want {
		return h, nil, fmt.Errorf("%w: type %d as answer", ErrProtocol, h.Type)
	}
	return h, payload, nil
}

// adopt makes the flow of an accepted open and starts its keeper.
func (c *Client) adopt(l *clientLine, st carrier.Stream, o frame.Open, opened frame.Opened) (*clientFlow, error) {
	f := &clientFlow{c: c, id: o.Flow, ref: GrantRef(o.Ref), epoch: o.Epoch, connect: time.Duration(opened.ConnectMicros) * time.Microsecond}
	var att *flow.Attachment
	if o.Network == frame.TCP {
		f.tcp = flow.New(flow.Config{ID: o.Flow, Epoch: o.Epoch, Memory: c.cfg.Memory})
		att = f.tcp.Start(st, opened.Window)
	} else {
		f.udp = flow.NewPackets(flow.PacketsConfig{ID: o.Flow, Send: f.sendDatagram, Max: f.maxDatagram})
		f.line.set(l)
	}
	c.mu.Lock()
	_, granted := c.grants[f.ref]
	closed := c.closed
	if !closed {
		c.flows[f.id] = f
		c.work.Add(1)
	}
	ctx := c.runCtx
	c.mu.Unlock()
	if closed {
		f.abort(frame.Reset)
		st.Abort()
		return nil, ErrClosed
	}
	if !granted {
		f.abort(frame.Withdrawn)
	}
	go func() {
		defer c.work.Done()
		f.keep(ctx, l, st, att)
	}()
	return f, nil
}

// keep serves the flow on one line after the other until it ends.
func (f *clientFlow) keep(ctx context.Context, l *clientLine, st carrier.Stream, att *flow.Attachment) {
	defer f.forget()
	for {
		f.serve(st, att)
		if f.closed {
			<-f.done() // nothing is left to send or receive: our program has the rest
		}
		if isDone(f.done()) {
			if isDone(l.dead) {
				f.c.owe(f.id, f.lastWord())
			}
			return
		}
		lost := time.Now()
		var err error
		if l, st, att, err = f.reattach(ctx); err != nil {
			f.abort(frame.CodeOf(err))
			f.c.owe(f.id, frame.CodeOf(err))
			return
		}
		f.c.resumed(lost)
	}
}

// lastWord is what the connector hears of a flow that ended without a stream.
func (f *clientFlow) lastWord() frame.Code {
	if err := f.err(); err != nil {
		return frame.CodeOf(err)
	}
	return frame.Closed
}

func (f *clientFlow) serve(st carrier.Stream, att *flow.Attachment) {
	if f.tcp != nil {
		_ = f.tcp.Serve(att) // a lost stream is not the end of the flow
		return
	}
	watchUDP(st, f.udp)
	f.line.set(nil)
}

func (f *clientFlow) forget() {
	if f.tcp != nil {
		f.tcp.Wait()
	}
	s := f.stats()
	f.c.mu.Lock()
	delete(f.c.flows, f.id)
	f.c.sent += s.FromApp
	f.c.received += s.ToApp
	f.c.mu.Unlock()
}

// owe tells the connector that a flow without a stream has ended: now if there is a
// line, else on the next one.
func (c *Client) owe(id uint64, code frame.Code) {
	c.mu.Lock()
	var l *clientLine
	if len(c.lines) > 0 {
		l = c.lines[0]
	} else if !c.closed && len(c.owed) < DefaultFlowsPerPeer {
		c.owed[id] = code
	}
	c.mu.Unlock()
	if l == nil {
		return
	}
	if err := l.write(frame.AppendRst(nil, id, code)); err != nil {
		c.lineFailed(l, err)
	}
}

// reattach brings the flow to another line, within the time a detached flow has.
func (f *clientFlow) reattach(ctx context.Context) (*clientLine, carrier.Stream, *flow.Attachment, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.c.cfg.DetachFor, frame.DetachedTooLong.Err())
	watched := make(chan struct{})
	defer func() {
		cancel()
		<-watched
	}()
	go func() {
		defer close(watched)
		select {
		case <-f.done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		l, err := f.c.activeLine(ctx)
		if err != nil {
			return nil, nil, nil, detachError(ctx, err)
		}
		st, att, err := f.tryAttach(ctx, l)
		if err == nil {
			return l, st, att, nil
		}
		if isRefusal(err) {
			return nil, nil, nil, err
		}
		f.c.pause(ctx, l)
		if ctx.Err() != nil {
			return nil, nil, nil, detachError(ctx, err)
		}
	}
}

func detachError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); isRefusal(cause) {
		return cause
	}
	return fmt.Errorf("attach: %w: %w", frame.Reset.Err(), err)
}

// tryAttach attaches on one line. A *frame.Error is the connector's answer.
func (f *clientFlow) tryAttach(ctx context.Context, l *clientLine) (carrier.Stream, *flow.Attachment, error) {
	if err := f.c.ensure(ctx, l, f.ref); err != nil {
		return nil, nil, err
	}
	f.epoch++ // also after an attempt that failed: its answer may be the only thing lost
	a := frame.Attach{Flow: f.id, Ref: uint64(f.ref), Epoch: f.epoch}
	if f.tcp != nil {
		a.State = f.tcp.State()
	}
	st, err := f.c.stream(ctx, l, frame.AppendAttach(nil, a))
	if err != nil {
		return nil, nil, err
	}
	actx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	h, payload, err := readAnswer(actx, l, st, frame.TypeAttached)
	if err != nil {
		st.Abort()
		return nil, nil, err
	}
	answer, err := frame.ParseAttach(h, payload)
	if err != nil {
		st.Abort()
		return nil, nil, err
	}
	return f.attached(l, st, a.Epoch, answer)
}

// attached takes the connector's answer. "Closed" still says what the connector had
// received, which is the last acknowledgement.
func (f *clientFlow) attached(l *clientLine, st carrier.Stream, epoch uint32, answer frame.Attach) (carrier.Stream, *flow.Attachment, error) {
	if answer.Code != frame.OK && (answer.Code != frame.Closed || f.tcp == nil) {
		_ = st.Close()
		return nil, nil, answer.Code.Err()
	}
	if f.tcp == nil {
		f.line.set(l)
		return st, nil, nil
	}
	att, err := f.tcp.Attach(st, epoch, answer.State, nil)
	if err != nil {
		st.Abort()
		return nil, nil, err
	}
	f.closed = answer.Code == frame.Closed
	if f.closed && !f.tcp.Settled() {
		return nil, nil, frame.Gap.Err()
	}
	return st, att, nil
}

// resumed reports a stall once per flow; the hook gets the time of this flow.
func (c *Client) resumed(lost time.Time) {
	if c.cfg.Events.Resumed != nil {
		c.cfg.Events.Resumed(1, time.Since(lost))
	}
}

func (f *clientFlow) sendDatagram(b []byte) error {
	l := f.line.get()
	if l == nil {
		return ErrNoCarrier
	}
	l.touch()
	return l.c.SendDatagram(b)
}

func (f *clientFlow) maxDatagram() int {
	l := f.line.get()
	if l == nil {
		return 0
	}
	return l.c.MaxDatagram()
}
