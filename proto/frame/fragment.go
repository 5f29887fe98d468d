package frame

import (
	"encoding/binary"
	"fmt"
)

// Limits of UDP payload on a link (decisions rule 18).
const (
	// MaxDatagram is the largest UDP payload.
	MaxDatagram = 64<<10 - 1
	// MaxFragments is how many pieces one datagram may have.
	MaxFragments = 64
	// FragmentLen is the length of a fragment header.
	FragmentLen = 14
)

// Fragment heads every datagram of a carrier:
//
//	 0              8              12      13      14
//	+--------------+--------------+-------+-------+-----------
//	| flow id      | datagram id  | index | total | piece
//	+--------------+--------------+-------+-------+-----------
//
// An unfragmented datagram has index 0 and total 1.
type Fragment struct {
	Flow         uint64
	Datagram     uint32
	Index, Total uint8
}

// PutFragment writes f into the first FragmentLen bytes of b.
func PutFragment(b []byte, f Fragment) {
	_ = b[FragmentLen-1]
	binary.BigEndian.PutUint64(b, f.Flow)
	binary.BigEndian.PutUint32(b[8:], f.Datagram)
	b[12], b[13] = f.Index, f.Total
}

// ParseFragment splits a datagram into header and piece; the piece is borrowed.
func ParseFragment(b []byte) (Fragment, []byte, error) {
	if len(b) < FragmentLen {
		return Fragment{}, nil, ErrTruncated
	}
	f := Fragment{Flow: binary.BigEndian.Uint64(b), Datagram: binary.BigEndian.Uint32(b[8:]), Index: b[12], Total: b[13]}
	if f.Total == 0 || f.Total > MaxFragments || f.Index >= f.Total {
		return Fragment{}, nil, fmt.Errorf("%w: piece %d of %d", ErrPayload, f.Index, f.Total)
	}
	return f, b[FragmentLen:], nil
}
