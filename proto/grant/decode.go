package grant

import (
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/tlv"
)

// maxText bounds one text field.
const maxText = 512

// decoder walks the fields of one message and keeps the first error.
type decoder struct {
	fields    []tlv.Field
	f         tlv.Field
	seen      int
	versioned bool
	err       error
}

func newDecoder(payload []byte) (*decoder, error) {
	fields, err := tlv.Parse(payload)
	if err != nil {
		return nil, err
	}
	if len(fields) > maxList {
		return nil, fmt.Errorf("%w: %d fields", tlv.ErrTooLarge, len(fields))
	}
	return &decoder{fields: fields}, nil
}

// newNested decodes a message inside a message; the outer one carries the version.
func newNested(payload []byte) (*decoder, error) {
	d, err := newDecoder(payload)
	if d != nil {
		d.versioned = true
	}
	return d, err
}

// next moves to the next field; it ends the walk after an error, and refuses a message
// whose constraints version was missing.
func (d *decoder) next() bool {
	if d.err != nil {
		return false
	}
	if d.seen == len(d.fields) {
		if !d.versioned {
			d.err = fmt.Errorf("%w: no constraints version", tlv.ErrBadValue)
		}
		return false
	}
	d.f = d.fields[d.seen]
	d.seen++
	return true
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) unknown() {
	if err := d.f.Unknown(); err != nil {
		d.fail(fmt.Errorf("%w: %w", ErrUnsupportedConstraint, err))
	}
}

func (d *decoder) version() {
	d.versioned = true
	if v := d.uint(); v != ConstraintsVersion {
		d.fail(fmt.Errorf("%w: constraints version %d, this build knows %d", ErrUnsupportedConstraint, v, ConstraintsVersion))
	}
}

func (d *decoder) uint() uint64 {
	v, err := d.f.Uint()
	if err != nil {
		d.fail(err)
	}
	return v
}

// small reads an enum; a value that does not fit becomes 255, which no enum holds.
func (d *decoder) small() uint8 { return uint8(min(d.uint(), 255)) }

func (d *decoder) time() time.Time {
	v := d.uint()
	if v > 1<<50 {
		d.fail(fmt.Errorf("%w: field %d is no time", tlv.ErrBadValue, d.f.Number))
		return time.Time{}
	}
	return time.UnixMilli(int64(v)).UTC()
}

func (d *decoder) duration() time.Duration {
	return time.Duration(min(d.uint(), uint64(366*24*time.Hour/time.Millisecond))) * time.Millisecond
}

func (d *decoder) text() string {
	if len(d.f.Value) > maxText || !utf8.Valid(d.f.Value) {
		d.fail(fmt.Errorf("%w: field %d is no short text", tlv.ErrBadValue, d.f.Number))
		return ""
	}
	return string(d.f.Value)
}

func (d *decoder) keyID() ids.KeyID {
	if len(d.f.Value) != len(ids.KeyID{}) {
		d.fail(fmt.Errorf("%w: field %d is no key id", tlv.ErrBadValue, d.f.Number))
		return ids.KeyID{}
	}
	return ids.KeyID(d.f.Value)
}

func (d *decoder) ports() Ports {
	v := d.f.Value
	if len(v) != 5 {
		d.fail(fmt.Errorf("%w: field %d is no port range", tlv.ErrBadValue, d.f.Number))
		return Ports{}
	}
	p := Ports{Network: Network(v[0]), First: binary.BigEndian.Uint16(v[1:]), Last: binary.BigEndian.Uint16(v[3:])}
	if err := p.check(); err != nil {
		d.fail(err)
	}
	return p
}

func (p Ports) check() error {
	if p.Network != TCP && p.Network != UDP {
		return fmt.Errorf("%w: network %d", ErrUnsupportedConstraint, p.Network)
	}
	if p.First == 0 || p.Last < p.First {
		return fmt.Errorf("%w: port range %d-%d", tlv.ErrBadValue, p.First, p.Last)
	}
	return nil
}

func encodePorts(p Ports) []byte {
	b := make([]byte, 5)
	b[0] = byte(p.Network)
	binary.BigEndian.PutUint16(b[1:], p.First)
	binary.BigEndian.PutUint16(b[3:], p.Last)
	return b
}

// textID reads an id of a kind; a malformed one is an error.
func textID[T ids.GrantID | ids.SessionID | ids.UserID | ids.AppID | ids.ConnectorID | ids.SiteID](d *decoder) T {
	id, err := ids.Parse[T](d.text())
	if err != nil {
		d.fail(fmt.Errorf("%w: field %d: %w", tlv.ErrBadValue, d.f.Number, err))
	}
	return id
}

func unixMilli(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMilli())
}
