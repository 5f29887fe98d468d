package stack

import (
	"net/netip"
	"sync"

	"github.com/postern-zt/postern/netstack/packet"
)

// Echo is a ping of a local program. The first verdict wins; no verdict is
// silence.
type Echo struct {
	// Local is the address that was pinged, Remote the program's.
	Local, Remote netip.Addr

	stack   *Stack
	quote   []byte
	request []byte // the ICMP part
	once    sync.Once
}

// Reply answers.
func (e *Echo) Reply() {
	e.once.Do(func() { e.stack.link.send(packet.AppendEchoReply(nil, e.Remote, e.Local, e.request)) })
}

// Unreachable says that the host is not there.
func (e *Echo) Unreachable() { e.refuse(packet.ReasonHost) }

// Prohibited says that the policy does not allow it.
func (e *Echo) Prohibited() { e.refuse(packet.ReasonProhibited) }

func (e *Echo) refuse(r packet.Reason) {
	e.once.Do(func() { e.stack.link.send(packet.AppendUnreachable(nil, e.quote, r)) })
}

// handleEcho runs in the reader; p borrows the reader's buffer.
func (s *Stack) handleEcho(p *packet.Parsed, whole []byte) {
	select {
	case s.echoes <- struct{}{}:
	default:
		s.stats.limited.Add(1)
		return
	}
	e := &Echo{
		Local: p.Dst.Addr(), Remote: p.Src.Addr(), stack: s,
		quote:   append([]byte(nil), whole[:min(len(whole), packet.MaxQuote)]...),
		request: append([]byte(nil), p.Transport...),
	}
	s.handlers.Go(func() {
		defer func() { <-s.echoes }()
		s.cfg.Handler.HandleEcho(s.ctx, e)
	})
}
