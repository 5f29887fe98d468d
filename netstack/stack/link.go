package stack

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-zt/postern/netstack/packet"
)

const (
	// headroom is left free before each packet for the header that the device
	// puts there (a virtio-net header has 10 or 12 bytes).
	headroom = 16
	// maxPacket is the largest IP packet: IPv6 does not count its header.
	maxPacket = 40 + 65535
	// maxMTU is what fits the length field of IPv4.
	maxMTU = 65535
	// queueLength bounds what waits for the device: at most 16 MiB of
	// super-packets. A full queue makes the sender wait, which is backpressure.
	queueLength = 256
	// writeBatch is enough to keep the device busy; each place costs 64 KiB.
	writeBatch = 32
	// maxReadErrors of the system in a row mean that the device is gone.
	maxReadErrors = 16
)

// link is gVisor's side of the device. WritePackets only queues: a write from
// within the stack's goroutines costs milliseconds at the tail.
type link struct {
	mtu     uint32
	queue   chan *gstack.PacketBuffer
	stopped chan struct{}
	once    sync.Once

	mu         sync.RWMutex
	dispatcher gstack.NetworkDispatcher // guarded by mu
}

var _ gstack.LinkEndpoint = (*link)(nil)

func newLink(mtu int) *link {
	return &link{
		mtu:     uint32(min(max(mtu, header.IPv6MinimumMTU), maxMTU)),
		queue:   make(chan *gstack.PacketBuffer, queueLength),
		stopped: make(chan struct{}),
	}
}

// send queues a packet that was built here. An empty packet is nothing.
func (l *link) send(b []byte) {
	if len(b) > 0 {
		l.put(gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(b)}))
	}
}

func (l *link) put(pkt *gstack.PacketBuffer) bool {
	select {
	case l.queue <- pkt:
		return true
	case <-l.stopped:
		pkt.DecRef()
		return false
	}
}

// WritePackets implements gstack.LinkWriter.
func (l *link) WritePackets(pkts gstack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if !l.put(pkt.IncRef()) {
			return n, &tcpip.ErrClosedForSend{}
		}
		n++
	}
	return n, nil
}

// flush waits until the device has what is in the queue now. The marker is an empty
// packet, which the writer lets go after it has written what was before it.
func (l *link) flush(limit time.Duration) {
	taken := make(chan struct{})
	marker := gstack.NewPacketBuffer(gstack.PacketBufferOptions{OnRelease: func() { close(taken) }})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	if !l.put(marker) {
		return
	}
	select {
	case <-taken:
	case <-timer.C:
	}
}

func (l *link) stop() { l.once.Do(func() { close(l.stopped) }) }

// The rest of gstack.LinkEndpoint: an interface without link addresses.

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*gstack.PacketBuffer)          {}
func (l *link) ParseHeader(*gstack.PacketBuffer) bool   { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

// Capabilities says that received checksums are right: the packets come from this
// host's kernel, which computed them a moment ago.
func (l *link) Capabilities() gstack.LinkEndpointCapabilities {
	return gstack.CapabilityRXChecksumOffload
}

func (l *link) Attach(d gstack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

func (l *link) deliver(version uint8, b []byte) {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if version == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	d.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// read is the one reader: it filters, and hands packets to gVisor.
func (s *Stack) read() error {
	bufs, sizes := newBatch(max(1, s.cfg.Device.BatchSize()))
	failures := 0
	for {
		n, err := s.cfg.Device.Read(bufs, sizes, headroom)
		for i := range n {
			s.inbound(bufs[i][headroom : headroom+sizes[i]])
		}
		switch {
		case err == nil:
			failures = 0
		case s.ctx.Err() != nil:
			return nil
		case deviceFailed(err) && failures >= maxReadErrors, isClosed(err): // closed: somebody removed it
			return fmt.Errorf("read from device: %w", err)
		case deviceFailed(err):
			failures++
		default: // a bad packet: any program can make one, so it must end nothing
			s.stats.malformed.Add(1)
		}
	}
}

// deviceFailed says that the system refused the read, rather than that the device
// did not understand what it read.
func deviceFailed(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

func isClosed(err error) bool { return errors.Is(err, fs.ErrClosed) || errors.Is(err, net.ErrClosed) }

func newBatch(n int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, headroom+maxPacket) // touched, and so resident, only when used
	}
	return bufs, make([]int, n)
}

// inbound handles one packet; b is valid until it returns.
func (s *Stack) inbound(b []byte) {
	var p packet.Parsed
	if err := p.Decode(b); err != nil {
		s.stats.malformed.Add(1)
		return
	}
	if !s.inside(p.Dst.Addr()) {
		s.stats.outside.Add(1)
		return
	}
	if p.IsEchoRequest() && !p.Fragment {
		s.handleEcho(&p, b)
		return
	}
	s.link.deliver(p.Version, b)
}

// write is the one writer: it gathers what waits into batches.
func (s *Stack) write() error {
	bufs, _ := newBatch(min(writeBatch, max(1, s.cfg.Device.BatchSize())))
	out := make([][]byte, 0, len(bufs))
	for {
		var marker *gstack.PacketBuffer
		select {
		case <-s.link.stopped:
			return nil
		case pkt := <-s.link.queue:
			out, marker = s.link.gather(bufs, out[:0], pkt)
		}
		err := s.writeBatch(out)
		if marker != nil {
			marker.DecRef()
		}
		if err != nil {
			return err
		}
	}
}

func (s *Stack) writeBatch(out [][]byte) error {
	if len(out) == 0 {
		return nil
	}
	_, err := s.cfg.Device.Write(out, headroom)
	switch {
	case err == nil, s.ctx.Err() != nil:
	case isClosed(err):
		return fmt.Errorf("write to device: %w", err)
	default:
		s.stats.refused.Add(1) // one packet; the others go on
		s.log.Debug("device refused a packet", "error", err)
	}
	return nil
}

// gather copies pkt and what waits behind it into bufs, up to a marker, which it
// returns.
func (l *link) gather(bufs, out [][]byte, pkt *gstack.PacketBuffer) ([][]byte, *gstack.PacketBuffer) {
	for {
		size := pkt.Size()
		if size == 0 {
			return out, pkt
		}
		if size <= maxPacket {
			out = append(out, copyPacket(bufs[len(out)][:headroom], pkt))
		}
		pkt.DecRef()
		if len(out) == len(bufs) {
			return out, nil
		}
		select {
		case pkt = <-l.queue:
		default:
			return out, nil
		}
	}
}

func copyPacket(b []byte, pkt *gstack.PacketBuffer) []byte {
	views, offset := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		part := v.AsSlice()
		skip := min(offset, len(part))
		b = append(b, part[skip:]...)
		offset -= skip
	}
	return b
}
