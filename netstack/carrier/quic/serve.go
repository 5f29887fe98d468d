package quic

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"github.com/postern-zt/postern/netstack/relay/attach"
	"github.com/postern-zt/postern/proto/ticket"
)

const (
	// linkIdle is how long a link without a connection keeps its transport: a client that
	// lost its carrier comes back under the same handle.
	linkIdle = 15 * time.Second
	// maxConns bounds the connections on one link: the present one and one that replaces it.
	maxConns = 4
)

// Serve accepts carriers on every link that reaches the connector's binding, until ctx
// ends or the binding does. onCarrier runs in a goroutine that Serve waits for; the
// carrier is closed after it.
func Serve(ctx context.Context, b *attach.Binding, cfg Config, onCarrier func(ctx context.Context, link ticket.Handle, c *Carrier)) error {
	if err := cfg.check(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		path, err := b.Accept(ctx)
		if err != nil {
			return err
		}
		wg.Go(func() {
			// A failure concerns one link; its client sees it and tries again.
			_ = ServePath(ctx, path, cfg, func(ctx context.Context, c *Carrier) { onCarrier(ctx, path.Link(), c) })
		})
	}
}

// ServePath accepts the carriers of one link until ctx ends or the link has had no
// connection for a while. It owns path.
func ServePath(ctx context.Context, path Path, cfg Config, onCarrier func(context.Context, *Carrier)) error {
	pc := newPacketConn(path)
	tr := &quicgo.Transport{Conn: pc.forQUIC()}
	defer func() {
		_ = errors.Join(tr.Close(), pc.Close(), path.Close()) // nothing can be done about it
	}()
	ln, err := tr.Listen(cfg.TLS, cfg.quic())
	if err != nil {
		return fmt.Errorf("quic over %s: %w", path, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &link{cfg: cfg, pc: pc, path: path.String(), onCarrier: onCarrier, ended: make(chan struct{}, maxConns), conns: make(chan *quicgo.Conn)}
	l.wg.Go(func() { l.accept(ctx, ln) })
	l.run(ctx)
	cancel()
	_ = ln.Close() // connections are closed by their carriers
	l.wg.Wait()
	return nil
}

// link is one served path; live belongs to run.
type link struct {
	cfg       Config
	pc        *packetConn
	path      string
	onCarrier func(context.Context, *Carrier)
	conns     chan *quicgo.Conn
	ended     chan struct{}
	live      int
	wg        sync.WaitGroup
}

func (l *link) accept(ctx context.Context, ln *quicgo.Listener) {
	defer close(l.conns)
	for {
		conn, err := ln.Accept(ctx)
		if err != nil {
			return
		}
		select {
		case l.conns <- conn:
		case <-ctx.Done():
			_ = conn.CloseWithError(codeClosed, "")
			return
		}
	}
}

// run starts a carrier for each connection and ends when there has been none for a while.
func (l *link) run(ctx context.Context) {
	idle := time.NewTimer(linkIdle)
	defer idle.Stop()
	for {
		select {
		case conn, ok := <-l.conns:
			if !ok {
				return
			}
			l.start(ctx, conn)
		case <-l.ended:
			l.live--
			idle.Reset(linkIdle)
		case <-idle.C:
			if l.live == 0 {
				return
			}
		}
	}
}

func (l *link) start(ctx context.Context, conn *quicgo.Conn) {
	if l.live >= maxConns {
		_ = conn.CloseWithError(codeRefused, "")
		return
	}
	c, err := newCarrier(conn, l.path, l.cfg.now(), nil)
	if err != nil {
		_ = conn.CloseWithError(codeRefused, "")
		return
	}
	l.pc.track(conn)
	l.live++
	l.wg.Go(func() {
		l.onCarrier(ctx, c)
		_ = c.Close() // the peer has been told or is gone
		l.ended <- struct{}{}
	})
}
