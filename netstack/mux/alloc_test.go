//go:build !race

package mux_test

import (
	"io"
	"net"
	"testing"
	"time"
)

// Moving bytes on an open stream takes no memory.
func TestMovingBytesAllocatesNothing(t *testing.T) {
	near, far := net.Pipe()
	client, server := run(t, &quietConn{Conn: near}, true), run(t, &quietConn{Conn: far}, false)
	a, b := open(t, client, server)
	out, in := make([]byte, 32<<10), make([]byte, 32<<10)
	move := func() {
		go func() { _, _ = a.Write(out) }()
		if _, err := io.ReadFull(b, in); err != nil {
			t.Fatal(err)
		}
	}
	move()
	// The goroutine above and net.Pipe's deadline are all that allocates.
	if n := testing.AllocsPerRun(200, move); n > 4 {
		t.Errorf("%v allocations for 32 KiB", n)
	}
}

// quietConn is a connection whose deadlines cost nothing.
type quietConn struct{ net.Conn }

func (*quietConn) SetWriteDeadline(time.Time) error { return nil }

func (c *quietConn) WriteFrame(head, body []byte) error {
	if _, err := c.Write(head); err != nil {
		return err
	}
	_, err := c.Write(body)
	return err
}
