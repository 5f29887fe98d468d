package chain

import (
	"crypto"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

const (
	signedHeadVersion = 1
	// maxSignedFields bounds a signed head: seven are known, later releases add some.
	maxSignedFields = 32
	maxTimeMS       = 1 << 50
)

// SignedHead is what a connector says of the records that it ships together: these, in this
// number, and the last one has this hash. It is signed with the connector's identity key
// (seal.SealIdentity, domain ChainHead). Because each record holds the hash of the one
// before, it also covers the whole chain up to there.
//
// Fields (proto/tlv): 1! version  2! connector id  3! first  4! last  5! count  6! hash of
// record last  7! time, ms.
type SignedHead struct {
	Connector ids.ConnectorID
	First     uint64
	Last      uint64
	Count     uint64 // Last - First + 1, said again
	Hash      Hash
	At        time.Time // by the connector's clock
}

// Seal signs the head.
func (h SignedHead) Seal(key crypto.Signer) ([]byte, error) {
	return seal.SealIdentity(key, seal.ChainHead, h.encode())
}

func (h SignedHead) encode() []byte {
	var w tlv.Writer
	w.PutUint(1, true, signedHeadVersion)
	w.PutString(2, true, string(h.Connector))
	w.PutUint(3, true, h.First)
	w.PutUint(4, true, h.Last)
	w.PutUint(5, true, h.Count)
	w.Put(6, true, h.Hash[:])
	w.PutUint(7, true, uint64(max(0, h.At.UnixMilli())))
	return w.Bytes()
}

// OpenSignedHead verifies an envelope by the connector's identity key, then reads it.
func OpenSignedHead(key ids.KeyID, envelope []byte) (SignedHead, error) {
	payload, err := seal.OpenIdentity(key, seal.ChainHead, envelope)
	if err != nil {
		return SignedHead{}, fmt.Errorf("signed head: %w", err)
	}
	h, err := parseSignedHead(payload)
	if err != nil {
		return SignedHead{}, fmt.Errorf("signed head: %w", err)
	}
	return h, nil
}

func parseSignedHead(payload []byte) (SignedHead, error) {
	fields, err := tlv.Parse(payload)
	if err != nil {
		return SignedHead{}, err
	}
	if len(fields) > maxSignedFields {
		return SignedHead{}, fmt.Errorf("%w: %d fields", tlv.ErrTooLarge, len(fields))
	}
	var h SignedHead
	for i, f := range fields {
		if i > 0 && f.Number == fields[i-1].Number && f.Number <= 7 {
			return SignedHead{}, fmt.Errorf("%w: field %d twice", tlv.ErrBadValue, f.Number)
		}
		if err := h.take(f); err != nil {
			return SignedHead{}, err
		}
	}
	return h, h.check(fields)
}

// take reads one field.
func (h *SignedHead) take(f tlv.Field) (err error) {
	var n uint64
	switch f.Number {
	case 1:
		if n, err = f.Uint(); err == nil && n != signedHeadVersion {
			err = fmt.Errorf("%w: version %d, this build knows %d", tlv.ErrBadValue, n, signedHeadVersion)
		}
	case 2:
		h.Connector, err = ids.Parse[ids.ConnectorID](string(f.Value))
	case 3:
		h.First, err = f.Uint()
	case 4:
		h.Last, err = f.Uint()
	case 5:
		h.Count, err = f.Uint()
	case 6:
		if len(f.Value) != len(h.Hash) {
			return fmt.Errorf("%w: a hash has %d bytes", tlv.ErrBadValue, len(h.Hash))
		}
		h.Hash = Hash(f.Value)
	case 7:
		if n, err = f.Uint(); n > maxTimeMS {
			return fmt.Errorf("%w: field 7 is no time", tlv.ErrBadValue)
		}
		h.At = time.UnixMilli(int64(n)).UTC()
	default:
		return f.Unknown()
	}
	return err
}

// check requires what every version has, and numbers that belong together.
func (h *SignedHead) check(fields []tlv.Field) error {
	if len(fields) == 0 || fields[0].Number != 1 || h.Connector == "" || h.Hash == (Hash{}) || h.At.IsZero() {
		return fmt.Errorf("%w: incomplete", tlv.ErrBadValue)
	}
	if h.First == 0 || h.Last < h.First || h.Last > 1<<62 || h.Count != h.Last-h.First+1 {
		return fmt.Errorf("%w: %d records from %d to %d", tlv.ErrBadValue, h.Count, h.First, h.Last)
	}
	return nil
}
