package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxBusy bounds the questions being answered at a time, for each transport.
	maxBusy = 512
	// tcpIdle ends a connection that asks nothing.
	tcpIdle = 10 * time.Second
)

// serve owns both listeners and every goroutine it starts.
func (s *Server) serve(ctx context.Context, udp *net.UDPConn, tcp net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = udp.Close() // only ends the blocked read
		_ = tcp.Close()
	})
	defer stop()
	s.readyOnce.Do(func() { close(s.ready) })

	var wg sync.WaitGroup
	var errUDP, errTCP error
	wg.Go(func() { defer cancel(); errUDP = s.serveUDP(ctx, udp) })
	wg.Go(func() { defer cancel(); errTCP = s.serveTCP(ctx, tcp) })
	wg.Wait()
	return errors.Join(errUDP, errTCP)
}

func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := make(chan struct{}, maxBusy)
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return endOf(ctx, err)
		}
		select {
		case busy <- struct{}{}:
		default:
			continue // the asker repeats its question
		}
		query := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer func() { <-busy }()
			s.answerUDP(ctx, conn, query, from)
		})
	}
}

func (s *Server) answerUDP(ctx context.Context, conn *net.UDPConn, query []byte, from netip.AddrPort) {
	reply, err := s.Answer(ctx, query, UDP)
	if err != nil {
		s.log.Debug("dns question dropped", "error", err)
		return
	}
	if _, err := conn.WriteToUDPAddrPort(reply, from); err != nil && ctx.Err() == nil {
		s.log.Debug("dns answer not sent", "error", err)
	}
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	busy := make(chan struct{}, maxBusy)
	for {
		conn, err := l.Accept()
		if err != nil {
			return endOf(ctx, err)
		}
		select {
		case busy <- struct{}{}:
		default:
			_ = conn.Close() // over the limit: the asker sees a closed connection
			continue
		}
		wg.Go(func() {
			defer func() { <-busy }()
			if err := s.ServeTCP(ctx, conn); err != nil {
				s.log.Debug("dns connection ended", "error", err)
			}
		})
	}
}

// ServeTCP answers the questions on one connection until it is idle, then closes
// it. The user-space stack hands its connections in here.
func (s *Server) ServeTCP(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // only ends the blocked read
	defer stop()
	defer conn.Close()
	for {
		if err := conn.SetDeadline(time.Now().Add(tcpIdle)); err != nil {
			return err
		}
		if err := s.serveOne(ctx, conn); err != nil {
			return endOf(ctx, err)
		}
	}
}

func (s *Server) serveOne(ctx context.Context, conn net.Conn) error {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > maxQuery {
		return ErrQuery
	}
	query := make([]byte, n)
	if _, err := io.ReadFull(conn, query); err != nil {
		return err
	}
	reply, err := s.Answer(ctx, query, TCP)
	if err != nil {
		return err
	}
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply)))
	_, err = conn.Write(append(framed, reply...))
	return err
}

// endOf turns the errors of an orderly end into nil.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
