//go:build linux

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-zt/postern/test/netns"
)

const (
	// chunk is the size of reads and writes of the load.
	chunk = 256 << 10
	// appPort is where the app listens on all addresses of the connector's machine.
	appPort = 7000
)

// direction is the first byte on a connection: what the app is to do with it.
type direction byte

const (
	down direction = 'd' // the app sends
	up   direction = 'u' // the app receives
	echo direction = 'e' // the app answers each byte
)

func (d direction) String() string {
	return map[direction]string{down: "down", up: "up", echo: "echo"}[d]
}

// pin sets the congestion control of a socket; sockets of a listener inherit it.
func pin(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
	}); cerr != nil {
		return cerr
	}
	return err
}

// pinned reads the congestion control of a connection back.
func pinned(c net.Conn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no socket", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var name string
	if cerr := raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); cerr != nil {
		return cerr
	}
	if err == nil && name != congestion {
		err = fmt.Errorf("congestion control is %s, want %s", name, congestion)
	}
	return err
}

// app is the private app: it sends, receives or echoes.
type app struct {
	received atomic.Uint64
	conns    sync.WaitGroup

	mu  sync.Mutex // guards err
	err error
}

// startApp serves on every address of h until the test ends.
func startApp(t *testing.T, h *netns.Host) *app {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) {
		lc := net.ListenConfig{Control: pin}
		l, err = lc.Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", appPort))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	a := &app{}
	a.conns.Go(func() { a.accept(l) })
	t.Cleanup(func() {
		l.Close()
		a.conns.Wait()
	})
	return a
}

func (a *app) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		a.conns.Go(func() {
			defer c.Close()
			a.serve(c)
		})
	}
}

func (a *app) serve(c net.Conn) {
	if err := pinned(c); err != nil {
		a.mu.Lock()
		a.err = errors.Join(a.err, fmt.Errorf("at the app: %w", err))
		a.mu.Unlock()
	}
	var command [1]byte
	if _, err := io.ReadFull(c, command[:]); err != nil {
		return
	}
	switch direction(command[0]) {
	case down:
		send(c)
	case up:
		receive(c, &a.received)
	case echo:
		_, _ = io.Copy(c, c) // ends with the connection
	}
}

// problem is what the app has noticed that makes the figures worthless.
func (a *app) problem() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// send writes until the connection ends.
func send(c net.Conn) {
	data := make([]byte, chunk)
	for {
		if _, err := c.Write(data); err != nil {
			return
		}
	}
}

// receive counts what comes until the connection ends.
func receive(c net.Conn, n *atomic.Uint64) {
	buf := make([]byte, chunk)
	for {
		got, err := c.Read(buf)
		n.Add(uint64(got))
		if err != nil {
			return
		}
	}
}

// load is one connection that moves bytes as fast as it can.
type load struct {
	conn  net.Conn
	count *atomic.Uint64
	done  chan struct{}
}

// startLoad opens a connection and keeps it busy in one direction.
func (a *app) startLoad(p path, dir direction) (*load, error) {
	c, err := dial(p.host, p.addr.String())
	if err != nil {
		return nil, err
	}
	if err := errors.Join(pinned(c), p.greet(c), write(c, byte(dir))); err != nil {
		c.Close()
		return nil, err
	}
	l := &load{conn: c, count: &a.received, done: make(chan struct{})}
	run := func() { send(c) }
	if dir == down {
		l.count = &atomic.Uint64{}
		run = func() { receive(c, l.count) }
	}
	go func() { // stop waits for done
		defer close(l.done)
		run()
	}()
	return l, nil
}

func write(c net.Conn, b byte) error {
	_, err := c.Write([]byte{b})
	return err
}

func (l *load) stop() {
	l.conn.Close()
	<-l.done
}

// socket is a TCP socket that is used by plain blocking calls.
type socket int

// Read implements io.Reader.
func (s socket) Read(b []byte) (int, error) {
	n, err := unix.Read(int(s), b)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

// Write implements io.Writer.
func (s socket) Write(b []byte) (int, error) { return unix.Write(int(s), b) }

// firstByte is the time from before the connect to the first byte back, from this thread's
// machine, by plain blocking calls: nothing of the runtime's scheduler is in it.
func firstByte(p path) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(dialTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(p.addr.Port()), Addr: p.addr.Addr().As4()}); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", p.addr, err)
	}
	if err := p.greet(socket(fd)); err != nil {
		return 0, err
	}
	buf := []byte{byte(echo), 'x'}
	if _, err := unix.Write(fd, buf); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(socket(fd), buf[:1])
	return time.Since(start), err
}

// greet names the app to the proxy of a path that has one (RFC 1928).
func (p path) greet(c io.ReadWriter) error {
	if p.socks == "" {
		return nil
	}
	host, portText, err := net.SplitHostPort(p.socks)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return err
	}
	if _, err := c.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	var answer [10]byte // with an IPv4 address
	if _, err := io.ReadFull(c, answer[:2]); err != nil {
		return err
	}
	request := append([]byte{5, 1, 0, 3, byte(len(host))}, host...)
	if _, err := c.Write(binary.BigEndian.AppendUint16(request, uint16(port))); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if answer[1] != 0 {
		return fmt.Errorf("the proxy refuses %s with code %d", p.socks, answer[1])
	}
	return nil
}
