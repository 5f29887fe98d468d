//go:build linux

package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pace is the pause between two messages of one flow.
const pace = 50 * time.Millisecond

// echoApp is a private app over TCP and UDP that knows when it heard each flow last.
type echoApp struct {
	mu    sync.Mutex // guards the fields below
	flows map[string]*heard
}

// heard is one flow as the app sees it.
type heard struct {
	last  time.Time // byte
	ended time.Time // of the connection; UDP has no end
	err   error
}

// serveEcho runs the app on a machine.
func serveEcho(t *testing.T, on *machine, addr string) *echoApp {
	t.Helper()
	a := &echoApp{flows: map[string]*heard{}}
	l, p := on.Listen(addr), on.ListenPacket(addr)
	var wg sync.WaitGroup
	wg.Go(func() { a.packets(p) })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { a.stream(c) })
		}
	})
	t.Cleanup(func() { // the connections end with the connector, which was stopped before
		_ = l.Close()
		_ = p.Close()
		wg.Wait()
	})
	return a
}

func (a *echoApp) stream(c net.Conn) {
	defer c.Close()
	key, buf := "tcp "+c.RemoteAddr().String(), make([]byte, 1024)
	for {
		n, err := c.Read(buf)
		a.note(key, n, err)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			continue // the read says why
		}
	}
}

func (a *echoApp) packets(p net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		a.note("udp "+from.String(), n, nil)
		_, _ = p.WriteTo(buf[:n], from) // a lost datagram is nothing
	}
}

func (a *echoApp) note(key string, n int, err error) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.flows[key]
	if h == nil {
		h = &heard{}
		a.flows[key] = h
	}
	if n > 0 {
		h.last = now
	}
	if err != nil {
		h.ended, h.err = now, err
	}
}

// snapshot copies what the app has heard.
func (a *echoApp) snapshot() map[string]heard {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string]heard, len(a.flows))
	for k, h := range a.flows {
		out[k] = *h
	}
	return out
}

// forget starts anew: what comes now is new.
func (a *echoApp) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flows = map[string]*heard{}
}

// talker is a local program that talks to the app on one flow.
type talker struct {
	network string
	conn    net.Conn
	stop    chan struct{} // closed at the end
	work    sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	answers int
	ended   time.Time
	err     error
}

// dialAs connects a socket of a user on a machine; from 0 leaves the port to the kernel.
func (m *machine) dialAs(ctx context.Context, uid int, network string, from uint16, addr string) (net.Conn, error) {
	var c net.Conn
	err := m.Do(func() (err error) {
		d := net.Dialer{LocalAddr: localPort(network, from), Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			err := raw.Control(func(fd uintptr) { failed = unix.Fchown(int(fd), uid, uid) })
			if err != nil {
				return err
			}
			return failed
		}}
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

func localPort(network string, port uint16) net.Addr {
	switch {
	case port == 0:
		return nil
	case network == "udp":
		return &net.UDPAddr{Port: int(port)}
	default:
		return &net.TCPAddr{Port: int(port)}
	}
}

// talk opens a flow as ann and keeps talking until it ends.
func (f *faulty) talk(t *testing.T, network, addr string) (*talker, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := f.laptop.dialAs(ctx, nobody, network, 0, addr)
	if err != nil {
		return nil, err
	}
	k := &talker{network: network, conn: conn, stop: make(chan struct{})}
	k.work.Go(k.listen)
	k.work.Go(k.speak)
	t.Cleanup(func() {
		_ = conn.Close()
		k.work.Wait()
	})
	return k, nil
}

func (k *talker) listen() {
	defer close(k.stop)
	buf := make([]byte, 1024)
	for {
		if _, err := k.conn.Read(buf); err != nil {
			k.failed(err)
			return
		}
		k.mu.Lock()
		k.answers++
		k.mu.Unlock()
	}
}

func (k *talker) speak() {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		if _, err := k.conn.Write([]byte("still allowed?")); err != nil {
			k.failed(err)
			_ = k.conn.Close() // ends the reader
			return
		}
		select {
		case <-k.stop:
			return
		case <-tick.C:
		}
	}
}

// failed notes how the flow ended. The kernel tells an error once: to the reader or to the
// writer, whose other half then sees a plain end.
func (k *talker) failed(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.ended = time.Now()
	}
	if _, precise := errors.AsType[syscall.Errno](k.err); !precise {
		k.err = err
	}
}

func (k *talker) alive() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err == nil && k.answers > 1
}

func (k *talker) end() (time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended, k.err
}

// spread is a set of durations in words.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	return fmt.Sprintf("p50 %s max %s", d[len(d)/2].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond))
}

// ofNetwork reports whether a key of the app is of that network.
func ofNetwork(key, network string) bool { return strings.HasPrefix(key, network+" ") }
