//go:build linux

package netns_test

import (
	"io"
	"net"
	"testing"

	"github.com/postern-zt/postern/netstack/stack"
)

// The path between a local program and the stack alone: TUN device, one TCP
// connection, both directions.
func BenchmarkInterception(b *testing.B) {
	const chunk = 256 << 10
	data := make([]byte, chunk)
	b.Run("down", func(b *testing.B) {
		m := newMachine(b, &handler{tcp: complete(func(c *stack.Conn) {
			for {
				if _, err := c.Write(data); err != nil {
					return
				}
			}
		})}, nil)
		c := dial(b, m)
		buf := make([]byte, chunk)
		b.ReportAllocs()
		b.SetBytes(chunk)
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("up", func(b *testing.B) {
		m := newMachine(b, &handler{tcp: complete(func(c *stack.Conn) {
			buf := make([]byte, chunk)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		})}, nil)
		c := dial(b, m)
		b.ReportAllocs()
		b.SetBytes(chunk)
		for b.Loop() {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// One new connection with a byte each way and an orderly end.
func BenchmarkOpen(b *testing.B) {
	m := newMachine(b, &handler{tcp: complete(func(c *stack.Conn) {
		var one [1]byte
		if _, err := c.Read(one[:]); err == nil {
			_, _ = c.Write(one[:]) // the reader notices
		}
	})}, nil)
	b.ReportAllocs()
	for b.Loop() {
		c := dial(b, m)
		if _, err := c.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func dial(b *testing.B, m *machine) net.Conn {
	b.Helper()
	c, err := m.Dial(b.Context(), "tcp", appV4+":80")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() }) // the benchmark may have closed it
	return c
}
