package link

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/postern-zt/postern/netstack/carrier"
	"github.com/postern-zt/postern/netstack/flow"
	"github.com/postern-zt/postern/proto/frame"
)

// runUDP is run for a UDP flow: it pumps datagrams between app and link until the flow
// is idle, cut, or refused by the app.
func (sf *serverFlow) runUDP(app net.Conn) {
	sf.udp = flow.NewPackets(flow.PacketsConfig{
		ID: sf.id, Send: sf.sendDatagram, Max: sf.maxDatagram,
		OnEnd: func(frame.Code) { _ = app.Close() },
	})
	sf.publish()
	done := make(chan struct{})
	go func() {
		defer close(done)
		sf.linkToApp(app)
	}()
	sf.appToLink(app)
	<-done
	stats := sf.udp.Stats()
	sf.count(stats)
	sf.finish(stats.Code, frame.Ack{})
}

func (sf *serverFlow) linkToApp(app net.Conn) {
	for {
		b, err := sf.udp.ReadDatagram()
		if err != nil {
			return
		}
		if _, err := app.Write(b); err != nil {
			sf.udpError(err)
		}
	}
}

func (sf *serverFlow) appToLink(app net.Conn) {
	buf := make([]byte, frame.MaxDatagram)
	idle := sf.udpIdle()
	for {
		_ = app.SetReadDeadline(sf.udp.LastActive().Add(idle)) // a closed socket fails the read
		n, err := app.Read(buf)
		switch {
		case err == nil:
			_, _ = sf.udp.Write(buf[:n]) // a datagram that cannot be sent is lost, as in UDP
		case errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(sf.udp.LastActive()) >= idle {
				sf.udp.Abort(frame.Idle)
				return
			}
		case sf.udpError(err):
			return
		}
	}
}

// udpError handles an error of the app's socket; it reports whether the flow has ended.
// "Connection refused" is the app's ICMP: the client must see it.
func (sf *serverFlow) udpError(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		sf.udp.Abort(frame.OK)
		return true
	}
	code := frame.Unreachable
	if refused(err) {
		code = frame.Refused
	}
	sf.udp.Abort(code)
	return true
}

func (sf *serverFlow) udpIdle() time.Duration {
	if sf.rec.Port == dnsPort {
		return sf.r.s.limits.DNSIdle
	}
	return sf.r.s.limits.UDPIdle
}

func (sf *serverFlow) sendDatagram(b []byte) error {
	l := sf.line.Load()
	if l == nil {
		return ErrNoCarrier
	}
	return l.c.SendDatagram(b)
}

func (sf *serverFlow) maxDatagram() int {
	l := sf.line.Load()
	if l == nil {
		return 0
	}
	return l.c.MaxDatagram()
}

func (sf *serverFlow) deliver(f frame.Fragment, b []byte) {
	select {
	case <-sf.ready:
		if sf.udp != nil {
			sf.udp.Deliver(f, b)
		}
	default: // before opened there is no flow to carry it
	}
}

// serveUDP binds the flow to l and watches its stream: the client ends the flow there,
// and we tell it there how the flow ended.
func (sf *serverFlow) serveUDP(l *line, st carrier.Stream, epoch uint32, first []byte) {
	sf.mu.Lock()
	stale := epoch <= sf.epoch
	if !stale {
		sf.epoch = epoch
		sf.line.Store(l)
	}
	sf.mu.Unlock()
	if stale {
		sf.r.refuseOpen(st, sf.id, frame.StaleEpoch)
		return
	}
	sf.disarmDetach()
	if _, err := st.Write(first); err == nil {
		watchUDP(st, sf.udp)
	}
	sf.mu.Lock()
	last := sf.epoch == epoch
	if last {
		sf.line.Store(nil)
	}
	sf.mu.Unlock()
	if last {
		sf.armDetach()
	}
}

// watchUDP reads the stream of a UDP flow until the stream or the flow ends; the end of
// the flow is told to the peer.
func watchUDP(st carrier.Stream, p *flow.Packets) {
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			h, _, err := readFrame(st)
			if err != nil {
				return
			}
			if h.Type == frame.TypeRst || h.Type == frame.TypeFin {
				p.Abort(h.Code)
				return
			}
		}
	}()
	select {
	case <-read:
		st.Abort()
		return
	case <-p.Done():
	}
	_ = st.SetWriteDeadline(time.Now().Add(controlTimeout))
	_, _ = st.Write(frame.AppendRst(nil, 0, frame.CodeOf(p.Err())))
	_ = st.CloseWrite()
	_ = st.SetReadDeadline(time.Now().Add(greetTimeout))
	<-read
	st.Abort()
}
