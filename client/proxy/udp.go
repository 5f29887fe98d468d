package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/postern-zt/postern/netstack/flow"
)

const (
	// maxAssociated bounds the apps that one UDP association talks to.
	maxAssociated = 64
	// maxPacket is a UDP datagram with its SOCKS header.
	maxPacket = 64<<10 + 300
)

// association is one UDP ASSOCIATE: a socket for one program, an association with each app
// that it sends to.
type association struct {
	s      *Server
	socket *net.UDPConn
	work   sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	program netip.AddrPort
	flows   map[string]*flow.Packets
}

// associate serves UDP until the program closes its TCP connection (RFC 1928 section 7).
func (s *Server) associate(ctx context.Context, conn net.Conn) {
	local := addrPort(conn.LocalAddr())
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
	if err != nil {
		_ = writeReply(conn, GeneralFailure, netip.AddrPort{})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &association{s: s, socket: socket, flows: map[string]*flow.Packets{}}
	defer a.end(cancel)
	bound := socket.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := writeReply(conn, Succeeded, netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())); err != nil {
		return
	}
	a.work.Go(func() { a.read(ctx, addrPort(conn.RemoteAddr()).Addr()) })
	_, _ = io.Copy(io.Discard, conn) // its end is the only message
}

func (a *association) end(cancel context.CancelFunc) {
	cancel()
	a.socket.Close()
	a.mu.Lock()
	for _, p := range a.flows {
		if p != nil {
			_ = p.Close()
		}
	}
	a.mu.Unlock()
	a.work.Wait()
}

// read takes datagrams of the program; the first one decides which port it has.
func (a *association) read(ctx context.Context, from netip.Addr) {
	buf := make([]byte, maxPacket)
	for {
		n, src, err := a.socket.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		if src.Addr() != from || !a.own(src) {
			continue
		}
		req, payload, err := parseDatagram(buf[:n])
		if err != nil || req.host == "" {
			continue
		}
		a.send(ctx, req, payload)
	}
}

func (a *association) own(src netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.program.IsValid() {
		a.program = src
	}
	return a.program == src
}

// parseDatagram reads RSV RSV FRAG and an address; fragments are not taken.
func parseDatagram(b []byte) (request, []byte, error) {
	if len(b) < 4 || b[2] != 0 {
		return request{}, nil, errAddress
	}
	r := bytes.NewReader(b[3:])
	req, err := readAddress(r)
	if err != nil {
		return request{}, nil, err
	}
	return req, b[len(b)-r.Len():], nil
}

// send passes a datagram on. While the app is being opened, later ones to it are lost: it
// is UDP.
func (a *association) send(ctx context.Context, req request, payload []byte) {
	key := net.JoinHostPort(req.host, strconv.Itoa(int(req.port)))
	a.mu.Lock()
	p, known := a.flows[key]
	full := !known && len(a.flows) >= maxAssociated
	if !known && !full {
		a.flows[key] = nil
	}
	a.mu.Unlock()
	switch {
	case full:
	case p != nil:
		_, _ = p.Write(payload) // best effort
	case !known:
		first := bytes.Clone(payload)
		a.work.Go(func() { a.open(ctx, key, req, first) })
	}
}

func (a *association) open(ctx context.Context, key string, req request, first []byte) {
	p, err := a.s.cfg.Opener.OpenUDP(ctx, req.host, req.port)
	a.mu.Lock()
	if err != nil || ctx.Err() != nil {
		delete(a.flows, key)
	} else {
		a.flows[key] = p
	}
	program := a.program
	a.mu.Unlock()
	if err != nil {
		a.s.log.DebugContext(ctx, "association not opened", "name", req.host, "port", req.port, "error", err)
		return
	}
	defer p.Close()
	if ctx.Err() != nil {
		return
	}
	_, _ = p.Write(first) // best effort
	a.answer(p, req, program)
	a.mu.Lock()
	delete(a.flows, key)
	a.mu.Unlock()
}

// answer passes datagrams of the app back under the name that the program used.
func (a *association) answer(p *flow.Packets, req request, program netip.AddrPort) {
	head := append([]byte{0, 0, 0, typeName, byte(len(req.host))}, req.host...)
	head = binary.BigEndian.AppendUint16(head, req.port)
	buf := make([]byte, maxPacket)
	copy(buf, head)
	for {
		n, err := p.Read(buf[len(head):])
		if err != nil {
			return
		}
		if _, err := a.socket.WriteToUDPAddrPort(buf[:len(head)+n], program); err != nil {
			return
		}
	}
}
