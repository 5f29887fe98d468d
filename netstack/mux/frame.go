package mux

import (
	"encoding/binary"
	"fmt"
)

// headerLen is the length of a frame's header:
//
//	0      1          4           8
//	+------+----------+-----------+---------
//	| type | length   | stream id | body
//	+------+----------+-----------+---------
//
// The side that dialled opens odd ids, the other even ones, each in rising order. The
// stream id of datagrams, pings and pongs is 0.
const headerLen = 8

type frameType uint8

const (
	// frameData carries bytes of a stream; frameOpen does too and is a stream's first.
	frameData frameType = 1
	frameOpen frameType = 2
	// frameFin ends the sender's direction, frameReset both.
	frameFin   frameType = 3
	frameReset frameType = 4
	// frameDatagram is one datagram.
	frameDatagram frameType = 5
	// framePing is answered by a framePong with the same 8 bytes.
	framePing frameType = 6
	framePong frameType = 7
)

const (
	// maxBody is the longest body of a data frame: one chunk of a flow with its header.
	maxBody = 128 << 10
	// MaxDatagram keeps one datagram within a TLS record.
	MaxDatagram = 16<<10 - headerLen
	// maxID is the last stream id; a session does not wrap around.
	maxID = 1<<32 - 3
	// nonceLen is the body of a ping.
	nonceLen = 8
)

// header is the start of a frame.
type header struct {
	typ    frameType
	length int
	stream uint32
}

func (h header) put(b *[headerLen]byte) {
	binary.BigEndian.PutUint32(b[0:], uint32(h.typ)<<24|uint32(h.length))
	binary.BigEndian.PutUint32(b[4:], h.stream)
}

func (h header) append(b []byte) []byte {
	var head [headerLen]byte
	h.put(&head)
	return append(b, head[:]...)
}

// parseHeader checks everything that a header alone can tell.
func parseHeader(b *[headerLen]byte) (header, error) {
	first := binary.BigEndian.Uint32(b[0:])
	h := header{typ: frameType(first >> 24), length: int(first & (1<<24 - 1)), stream: binary.BigEndian.Uint32(b[4:])}
	most, least, ofStream := maxBody, 0, true
	switch h.typ {
	case frameData, frameOpen:
	case frameFin, frameReset:
		most = 0
	case frameDatagram:
		most, ofStream = MaxDatagram, false
	case framePing, framePong:
		most, least, ofStream = nonceLen, nonceLen, false
	default:
		return h, fmt.Errorf("%w: frame type %d", errProtocol, h.typ)
	}
	if h.length > most || h.length < least {
		return h, fmt.Errorf("%w: frame type %d of %d bytes", errProtocol, h.typ, h.length)
	}
	if ofStream != (h.stream != 0) || h.stream > maxID {
		return h, fmt.Errorf("%w: frame type %d on stream %d", errProtocol, h.typ, h.stream)
	}
	return h, nil
}
