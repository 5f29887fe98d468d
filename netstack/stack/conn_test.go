package stack_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/postern-zt/postern/netstack/packet"
	"github.com/postern-zt/postern/netstack/stack"
)

// peer is the program's side of one connection.
type peer struct {
	f        *fixture
	src      netip.AddrPort
	seq, ack uint32
}

// connect plays the program through the handshake.
func (f *fixture) connect(port uint16) (*stack.Conn, *peer) {
	f.t.Helper()
	p := &peer{f, netip.AddrPortFrom(program, port), 1001, 0}
	f.syn(port, app)
	held := receive(f.t, f.calls.tcp)
	conns := make(chan *stack.Conn, 1)
	go func() {
		c, err := held.Complete(f.t.Context())
		if err != nil {
			f.t.Error(err)
		}
		conns <- c
	}()
	synAck := f.answer()
	p.ack = synAck.Seq + 1
	p.send(packet.FlagACK, "")
	return receive(f.t, conns), p
}

// send sends a segment with the flags besides ACK.
func (p *peer) send(flags uint8, payload string) {
	b := packet.AppendUDP(nil, p.src, app, append(make([]byte, 12), payload...))
	t := b[20:]
	clear(t[4:20])
	binary.BigEndian.PutUint32(t[4:], p.seq)
	binary.BigEndian.PutUint32(t[8:], p.ack)
	t[12], t[13] = 5<<4, flags|packet.FlagACK
	binary.BigEndian.PutUint16(t[14:], 65535)
	b[9] = byte(packet.ProtoTCP)
	fixHeaderSum(b)
	p.seq += uint32(len(payload))
	if flags&packet.FlagFIN != 0 {
		p.seq++
	}
	p.f.wire.in <- b
}

// wantFlag reads what the program gets until a segment with the flag comes.
func (p *peer) wantFlag(flag uint8) packet.Parsed {
	p.f.t.Helper()
	for {
		if s := p.f.answer(); s.TCPFlags&flag != 0 {
			return s
		}
	}
}

func TestConnReadsWhatTheProgramWrites(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	c, p := f.connect(20000)
	p.send(packet.FlagPSH, "hello")
	p.send(packet.FlagFIN, "")
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v, want hello and the end", got, err)
	}
	if _, err := c.Write([]byte("bye")); err != nil {
		t.Errorf("write after the program's FIN = %v", err)
	}
	if s := p.wantFlag(packet.FlagPSH); string(s.Payload) != "bye" {
		t.Errorf("program got %q, want bye", s.Payload)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	p.wantFlag(packet.FlagFIN)
	if c.LocalAddr().String() != app.String() || c.RemoteAddr().String() != p.src.String() {
		t.Errorf("addresses %v and %v", c.LocalAddr(), c.RemoteAddr())
	}
}

func TestConnErrorsAreTyped(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	read := func(c *stack.Conn) error { _, err := c.Read(make([]byte, 1)); return err }

	c, p := f.connect(20000)
	p.send(packet.FlagRST, "")
	if err := read(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after RST = %v, want ECONNRESET", err)
	}

	c, _ = f.connect(20001)
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := read(c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read at the deadline = %v, want ErrDeadlineExceeded", err)
	}
	if err := errors.Join(c.SetDeadline(time.Time{}), c.SetDeadline(time.Now().Add(time.Hour)), c.SetReadDeadline(time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	if err := read(c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline = %v, want ErrDeadlineExceeded", err)
	}

	for name, end := range map[string]func(*stack.Conn){
		"close": func(c *stack.Conn) { _ = c.Close() }, // never fails
		"abort": (*stack.Conn).Abort,
	} {
		c, _ := f.connect(20002)
		failed := make(chan error, 1)
		go func() { failed <- read(c) }()
		end(c)
		if err := receive(t, failed); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read during %s = %v, want net.ErrClosed", name, err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after %s = %v, want net.ErrClosed", name, err)
		}
		f = newFixture(t, stack.Limits{}, stack.Times{}) // the port is free again
	}
}

func TestAbortSendsReset(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	c, p := f.connect(20000)
	c.Abort()
	p.wantFlag(packet.FlagRST)
}

func TestUnknownConnectionIsReset(t *testing.T) {
	f := newFixture(t, stack.Limits{}, stack.Times{})
	p := &peer{f, netip.AddrPortFrom(program, 20000), 5, 7}
	p.send(packet.FlagPSH, "from before the restart")
	p.wantFlag(packet.FlagRST)
}
