package grant

import (
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

// TargetKind says what a revocation ends.
type TargetKind uint8

// The targets of a revocation (decisions rule 9).
const (
	TargetUser    TargetKind = 1
	TargetDevice  TargetKind = 2
	TargetSession TargetKind = 3
	TargetGrant   TargetKind = 4
	TargetApp     TargetKind = 5
)

// Revocation ends every grant that matches its target and was issued before it. Target is
// the text of the id; a device is named by its key id, because grants bind to keys.
type Revocation struct {
	Sequence uint64
	Kind     TargetKind
	Target   string
	At       time.Time
}

// Matches reports whether the revocation ends g.
func (r Revocation) Matches(g *Grant) bool {
	if g.NotBefore.After(r.At) {
		return false
	}
	switch r.Kind {
	case TargetUser:
		return r.Target == string(g.User)
	case TargetDevice:
		return r.Target == g.PeerKey.String()
	case TargetSession:
		return r.Target == string(g.Session)
	case TargetGrant:
		return r.Target == string(g.ID)
	case TargetApp:
		return r.Target == string(g.App)
	default:
		return true
	}
}

// Statement is the broker's signed news to one connector: every grant that was issued to
// it holds until Until, except those ended by a revocation up to sequence Revoked. The
// list carries each revocation after From; a connector that has not applied all up to
// From must ask for everything and treats the statement as absent (decisions rules 7, 9).
//
// Fields (proto/tlv): 1! constraints version  2! connector id  3! epoch  4! sequence
// 5! broker time  6! until  7! from  8! revoked up to  9! void before  10! revocation *
// where a revocation is 1! sequence  2! kind  3! target  4! at.
type Statement struct {
	Connector ids.ConnectorID
	Epoch     uint64
	Sequence  uint64
	Time      time.Time
	Until     time.Time
	From      uint64
	Revoked   uint64
	// VoidBefore ends every grant issued before it: set by a restore.
	VoidBefore  time.Time
	Revocations []Revocation
}

// SealStatement signs a statement.
func SealStatement(s *seal.Signer, st *Statement) []byte {
	var w tlv.Writer
	w.PutUint(1, true, ConstraintsVersion)
	w.PutString(2, true, string(st.Connector))
	w.PutUint(3, true, st.Epoch)
	w.PutUint(4, true, st.Sequence)
	w.PutUint(5, true, unixMilli(st.Time))
	w.PutUint(6, true, unixMilli(st.Until))
	w.PutUint(7, true, st.From)
	w.PutUint(8, true, st.Revoked)
	w.PutUint(9, true, unixMilli(st.VoidBefore))
	for _, r := range st.Revocations {
		w.Put(10, true, r.encode())
	}
	return s.Seal(seal.Statement, w.Bytes())
}

func (r Revocation) encode() []byte {
	var w tlv.Writer
	w.PutUint(1, true, r.Sequence)
	w.PutUint(2, true, uint64(r.Kind))
	w.PutString(3, true, r.Target)
	w.PutUint(4, true, unixMilli(r.At))
	return w.Bytes()
}

// OpenStatement verifies and parses a sealed statement.
func OpenStatement(keys seal.Keys, envelope []byte) (*Statement, error) {
	payload, err := keys.Open(seal.Statement, envelope)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	d, err := newDecoder(payload)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	st := &Statement{}
	for d.next() {
		st.setField(d)
	}
	if d.err != nil {
		return nil, fmt.Errorf("statement: %w", d.err)
	}
	if st.Connector == "" || st.Time.IsZero() || !st.Until.After(st.Time) || st.From > st.Revoked {
		return nil, fmt.Errorf("statement: %w: incomplete", tlv.ErrBadValue)
	}
	return st, nil
}

func (st *Statement) setField(d *decoder) {
	switch d.f.Number {
	case 1:
		d.version()
	case 2:
		st.Connector = textID[ids.ConnectorID](d)
	case 3:
		st.Epoch = d.uint()
	case 4:
		st.Sequence = d.uint()
	case 5:
		st.Time = d.time()
	case 6:
		st.Until = d.time()
	case 7:
		st.From = d.uint()
	case 8:
		st.Revoked = d.uint()
	case 9:
		st.VoidBefore = d.time()
	case 10:
		st.Revocations = append(st.Revocations, d.revocation())
	default:
		d.unknown()
	}
}

func (d *decoder) revocation() Revocation {
	r, err := parseRevocation(d.f.Value)
	if err != nil {
		d.fail(err)
	}
	return r
}

func parseRevocation(b []byte) (Revocation, error) {
	d, err := newNested(b)
	if err != nil {
		return Revocation{}, err
	}
	var r Revocation
	for d.next() {
		switch d.f.Number {
		case 1:
			r.Sequence = d.uint()
		case 2:
			r.Kind = TargetKind(d.small())
		case 3:
			r.Target = d.text()
		case 4:
			r.At = d.time()
		default:
			d.unknown()
		}
	}
	if d.err != nil {
		return Revocation{}, d.err
	}
	// An unknown target kind is kept: Matches then ends every grant, which is the safe side.
	if r.Sequence == 0 || r.Target == "" || r.Kind == 0 {
		return Revocation{}, fmt.Errorf("%w: revocation without sequence, kind or target", tlv.ErrBadValue)
	}
	return r, nil
}
