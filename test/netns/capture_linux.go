package netns

import (
	"bytes"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// captureBuffer holds what a busy test has not read yet.
	captureBuffer = 32 << 20
	// maxFrame is more than any packet has, super-packets included.
	maxFrame = 128 << 10
	// everyProtocol is ETH_P_ALL in network byte order.
	everyProtocol = unix.ETH_P_ALL>>8 | (unix.ETH_P_ALL&0xff)<<8
)

// Capture watches every packet on every interface of a machine, those that appear later
// included. It is safe for concurrent use.
type Capture struct {
	host  *Host
	words []string
	file  *os.File
	done  chan struct{}

	mu      sync.Mutex                    // guards the fields below
	frames  map[string]int                // interface -> how many
	seen    map[string]map[string]bool    // word -> interfaces
	sent    map[string]map[netip.Addr]int // interface -> where to
	stopped bool
}

// Capture starts to look for words in packets; the test's end stops it.
func (h *Host) Capture(words ...string) *Capture {
	h.w.t.Helper()
	c := &Capture{host: h, words: words, done: make(chan struct{}), frames: map[string]int{}, seen: map[string]map[string]bool{}, sent: map[string]map[netip.Addr]int{}}
	var fd int
	err := h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, everyProtocol)
		return err
	})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
		c.file = os.NewFile(uintptr(fd), "capture")
	}
	if err != nil {
		h.w.t.Fatalf("%s: capture: %v", h.Name, err)
	}
	go func() { // Stop waits for it
		defer close(c.done)
		_ = h.Do(c.read) // ends when the socket is closed
	}()
	h.w.t.Cleanup(c.Stop)
	return c
}

// read runs on a thread in the namespace, where the numbers of interfaces have names.
func (c *Capture) read() error {
	conn, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	buf, names := make([]byte, maxFrame), map[int]string{}
	for {
		var n int
		var from unix.Sockaddr
		var got error
		err := conn.Read(func(fd uintptr) bool {
			n, from, got = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(got, unix.EAGAIN)
		})
		if err != nil {
			return err
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok && got == nil {
			c.note(nameOf(names, at.Ifindex), buf[:n], at.Pkttype == unix.PACKET_OUTGOING)
		}
	}
}

// nameOf remembers names: an interface may be gone when its last packet is read.
func nameOf(names map[int]string, index int) string {
	if names[index] == "" {
		if iface, err := net.InterfaceByIndex(index); err == nil {
			names[index] = iface.Name
		}
	}
	return names[index]
}

func (c *Capture) note(iface string, packet []byte, outgoing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames[iface]++
	for _, word := range c.words {
		if bytes.Contains(packet, []byte(word)) {
			if c.seen[word] == nil {
				c.seen[word] = map[string]bool{}
			}
			c.seen[word][iface] = true
		}
	}
	if to, ok := destination(packet); ok && outgoing {
		if c.sent[iface] == nil {
			c.sent[iface] = map[netip.Addr]int{}
		}
		c.sent[iface][to]++
	}
}

// destination reads where an IP packet goes.
func destination(packet []byte) (netip.Addr, bool) {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return netip.AddrFromSlice(packet[16:20])
	case len(packet) >= 40 && packet[0]>>4 == 6:
		return netip.AddrFromSlice(packet[24:40])
	default:
		return netip.Addr{}, false
	}
}

// Stop ends the capture. The test fails when packets were missed: then what was not seen
// proves nothing.
func (c *Capture) Stop() {
	c.host.w.t.Helper()
	c.mu.Lock()
	stopped := c.stopped
	c.stopped = true
	c.mu.Unlock()
	if stopped {
		return
	}
	conn, err := c.file.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) {
			if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || st.Drops > 0 {
				c.host.w.t.Errorf("%s: the capture missed packets: %+v, %v", c.host.Name, st, err)
			}
		})
	}
	if err = errors.Join(err, c.file.Close()); err != nil {
		c.host.w.t.Errorf("%s: end the capture: %v", c.host.Name, err)
	}
	<-c.done
}

// Seen lists the interfaces on which a word was in a packet.
func (c *Capture) Seen(word string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.seen[word]))
}

// Frames counts the packets on an interface.
func (c *Capture) Frames(iface string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[iface]
}

// Sent counts the packets that left through an interface, by where they went; multicast is
// left out.
func (c *Capture) Sent(iface string) map[netip.Addr]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := maps.Clone(c.sent[iface])
	maps.DeleteFunc(out, func(to netip.Addr, _ int) bool { return to.IsMulticast() })
	return out
}
