package frame

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/postern-zt/postern/proto/tlv"
)

// InstanceID names one run of a client: its flows die with it (decisions rule 16).
type InstanceID [16]byte

// NewInstanceID returns a random instance id.
func NewInstanceID() InstanceID {
	var id InstanceID
	rand.Read(id[:])
	return id
}

// String returns the id in hexadecimal.
func (i InstanceID) String() string { return hex.EncodeToString(i[:]) }

// PeerKind says what stands at the client end (rule 11). The zero value is refused.
type PeerKind uint8

// The peer kinds.
const (
	KindDevice    PeerKind = 1
	KindWorkload  PeerKind = 2
	KindGateway   PeerKind = 3
	KindConnector PeerKind = 4
)

// Features is a bit set of optional abilities; both sides use the intersection.
type Features uint64

// The features of this release.
const (
	FeatureResume Features = 1 << 0
	FeatureUDP    Features = 1 << 1
)

// AllFeatures is what this release offers.
const AllFeatures = FeatureResume | FeatureUDP

// Hello is the first frame of both sides on the control stream. Its payload is tlv:
//
//	1 min  2 max  3 features  4 instance(16)  5 peer kind  6 endorsement
//
// Anything unknown and critical is refused.
type Hello struct {
	Min, Max    uint64
	Features    Features
	Instance    InstanceID
	Kind        PeerKind
	Endorsement []byte
}

// NewHello returns the hello of this release.
func NewHello(instance InstanceID, kind PeerKind) Hello {
	return Hello{Min: VersionMin, Max: VersionMax, Features: AllFeatures, Instance: instance, Kind: kind}
}

// AppendHello appends the frame.
func AppendHello(b []byte, h Hello) []byte {
	var w tlv.Writer
	w.PutUint(1, false, h.Min)
	w.PutUint(2, false, h.Max)
	w.PutUint(3, false, uint64(h.Features))
	w.Put(4, false, h.Instance[:])
	w.PutUint(5, false, uint64(h.Kind))
	if len(h.Endorsement) > 0 {
		w.Put(6, false, h.Endorsement)
	}
	return appendFrame(b, Header{Type: TypeHello}, w.Bytes())
}

// ParseHello reads the payload of a hello frame. Endorsement is borrowed.
func ParseHello(payload []byte) (Hello, error) {
	fields, err := tlv.Parse(payload)
	if err != nil {
		return Hello{}, fmt.Errorf("parse hello: %w", err)
	}
	var h Hello
	for _, f := range fields {
		if err := h.set(f); err != nil {
			return Hello{}, fmt.Errorf("parse hello: %w", err)
		}
	}
	if h.Kind < KindDevice || h.Kind > KindConnector || h.Min == 0 || h.Max < h.Min || h.Instance == (InstanceID{}) {
		return Hello{}, fmt.Errorf("%w: hello lacks a field", ErrPayload)
	}
	return h, nil
}

func (h *Hello) set(f tlv.Field) error {
	if f.Number == 4 {
		if len(f.Value) != len(h.Instance) {
			return fmt.Errorf("%w: instance of %d bytes", ErrPayload, len(f.Value))
		}
		h.Instance = InstanceID(f.Value)
		return nil
	}
	if f.Number == 6 {
		h.Endorsement = f.Value
		return nil
	}
	if f.Number == 0 || f.Number > 6 {
		return f.Unknown()
	}
	v, err := f.Uint()
	if err != nil {
		return err
	}
	switch f.Number {
	case 1:
		h.Min = v
	case 2:
		h.Max = v
	case 3:
		h.Features = Features(v)
	default:
		if v > 255 {
			return fmt.Errorf("%w: peer kind %d", ErrPayload, v)
		}
		h.Kind = PeerKind(v)
	}
	return nil
}

// Agree returns the version and features that both hellos allow.
func Agree(a, b Hello) (uint64, Features, error) {
	v := min(a.Max, b.Max)
	if v < max(a.Min, b.Min) {
		return 0, 0, fmt.Errorf("%w: %d to %d and %d to %d", ErrVersion, a.Min, a.Max, b.Min, b.Max)
	}
	return v, a.Features & b.Features, nil
}
