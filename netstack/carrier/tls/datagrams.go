package tls

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/yamux"
)

const (
	// maxDatagram keeps one datagram within a TLS record.
	maxDatagram = 16 << 10
	// datagramQueue bounds what waits in each direction; the oldest goes (rule 18).
	datagramQueue = 256
	// datagramBatch is how much one write to the stream gathers.
	datagramBatch = 64 << 10
)

// datagrams carries datagrams on one stream, each behind its length:
//
//	0        2
//	+--------+-----------
//	| length | payload
//	+--------+-----------
type datagrams struct {
	stream  *yamux.Stream
	in      chan []byte
	ready   chan struct{} // length 1: a wake-up for the writer
	stopped chan struct{}

	mu    sync.Mutex // guards queue
	queue [][]byte
}

func newDatagrams(s *yamux.Stream) *datagrams {
	return &datagrams{
		stream: s, in: make(chan []byte, datagramQueue),
		ready: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
}

// send queues a framed copy of p.
func (d *datagrams) send(p []byte) {
	b := make([]byte, 2+len(p))
	binary.BigEndian.PutUint16(b, uint16(len(p)))
	copy(b[2:], p)
	d.mu.Lock()
	if len(d.queue) >= datagramQueue {
		d.queue[0] = nil
		d.queue = d.queue[1:]
	}
	d.queue = append(d.queue, b)
	d.mu.Unlock()
	select {
	case d.ready <- struct{}{}:
	default:
	}
}

// writeLoop writes queued datagrams, many at once, until the carrier ends.
func (d *datagrams) writeLoop(done <-chan struct{}) error {
	var batch []byte
	for {
		select {
		case <-d.ready:
		case <-done:
			return nil
		}
		for {
			batch = d.gather(batch[:0])
			if len(batch) == 0 {
				break
			}
			if _, err := d.stream.Write(batch); err != nil {
				return fmt.Errorf("write datagrams: %w", err)
			}
		}
	}
}

func (d *datagrams) gather(batch []byte) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.queue) > 0 && len(batch) < datagramBatch {
		batch = append(batch, d.queue[0]...)
		d.queue[0] = nil
		d.queue = d.queue[1:]
	}
	return batch
}

// readLoop takes datagrams off the stream until it ends.
func (d *datagrams) readLoop() error {
	r := bufio.NewReaderSize(d.stream, 4<<10)
	var head [2]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return fmt.Errorf("read datagrams: %w", err)
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n > maxDatagram {
			return fmt.Errorf("read datagrams: one of %d bytes", n)
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			return fmt.Errorf("read datagrams: %w", err)
		}
		d.deliver(p)
	}
}

// deliver queues p for ReceiveDatagram; when the queue is full the oldest goes.
func (d *datagrams) deliver(p []byte) {
	for {
		select {
		case d.in <- p:
			return
		default:
		}
		select {
		case <-d.in:
		default:
		}
	}
}
