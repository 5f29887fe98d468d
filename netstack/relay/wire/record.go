package wire

import (
	"encoding/binary"
	"net"
)

const recordHeader = 5

// RecordConn is a conn to put under a tls.Conn that will fall back to raw bytes: its Read
// never returns bytes past the TLS record it is in, so crypto/tls, which otherwise reads
// ahead, leaves everything behind the last record in the socket for the raw stream.
//
// One goroutine may read at a time, as under any tls.Conn.
type RecordConn struct {
	net.Conn
	head   [recordHeader]byte
	have   int // bytes of head
	remain int // bytes of the record's body still to come
	free   bool
}

// NewRecordConn wraps a fresh connection on which nothing has been read.
func NewRecordConn(c net.Conn) *RecordConn { return &RecordConn{Conn: c} }

// Raw returns the wrapped connection.
func (c *RecordConn) Raw() net.Conn { return c.Conn }

// PassThrough gives up the bound, for a connection that turned out to speak something
// else (control, pages). It is called by the reader, between two reads.
func (c *RecordConn) PassThrough() { c.free = true }

// Read returns at most the rest of the current record header or body.
func (c *RecordConn) Read(b []byte) (int, error) {
	if c.free || len(b) == 0 {
		return c.Conn.Read(b)
	}
	if c.remain > 0 {
		n, err := c.Conn.Read(b[:min(len(b), c.remain)])
		c.remain -= n
		return n, err
	}
	n, err := c.Conn.Read(b[:min(len(b), recordHeader-c.have)])
	copy(c.head[c.have:], b[:n])
	if c.have += n; c.have == recordHeader {
		c.have, c.remain = 0, int(binary.BigEndian.Uint16(c.head[3:]))
	}
	return n, err
}

// RecordListener accepts connections as RecordConns, for a port that serves the relay
// beside other protocols.
type RecordListener struct{ net.Listener }

// Accept wraps the next connection.
func (l RecordListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return NewRecordConn(c), nil
}
