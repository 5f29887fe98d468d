package ticket

import (
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/tlv"
)

// encode writes the inner message. Every field is critical: a relay that does not
// understand a limit must not serve without it.
func (t Ticket) encode() []byte {
	var w tlv.Writer
	w.PutUint(fieldRole, true, uint64(t.Role))
	w.PutUint(fieldHandle, true, uint64(t.Handle))
	w.PutUint(fieldConnector, true, uint64(t.Connector))
	w.Put(fieldMACKey, true, t.MACKey[:])
	w.Put(fieldHolder, true, t.Holder[:])
	w.PutUint(fieldRate, true, t.BytesPerSecond)
	w.PutUint(fieldFlows, true, t.Flows)
	w.PutUint(fieldNotBefore, true, uint64(t.NotBefore.Unix()))
	w.PutUint(fieldExpires, true, uint64(t.Expires.Unix()))
	return w.Bytes()
}

// openOuter returns the ciphertext of a message for this relay.
func openOuter(b []byte, relay ids.RelayID) ([]byte, error) {
	fields, err := parse(b)
	if err != nil {
		return nil, err
	}
	var name, ct []byte
	for _, f := range fields {
		switch f.Number {
		case fieldRelay:
			name = f.Value
		case fieldSealed:
			ct = f.Value
		default:
			if err := f.Unknown(); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
			}
		}
	}
	if string(name) != string(relay) || relay == "" {
		return nil, ErrForeign
	}
	return ct, nil
}

func decode(b []byte) (Ticket, error) {
	fields, err := parse(b)
	if err != nil {
		return Ticket{}, err
	}
	var t Ticket
	for _, f := range fields {
		if err := t.set(f); err != nil {
			return Ticket{}, err
		}
	}
	return t, nil
}

// parse refuses a repeated field: no field of a ticket is a list.
func parse(b []byte) ([]tlv.Field, error) {
	fields, err := tlv.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for i := 1; i < len(fields); i++ {
		if fields[i].Number == fields[i-1].Number {
			return nil, fmt.Errorf("%w: field %d twice", ErrMalformed, fields[i].Number)
		}
	}
	return fields, nil
}

func (t *Ticket) set(f tlv.Field) error {
	switch f.Number {
	case fieldMACKey:
		return setBytes(t.MACKey[:], f)
	case fieldHolder:
		return setBytes(t.Holder[:], f)
	case fieldRole, fieldHandle, fieldConnector, fieldRate, fieldFlows, fieldNotBefore, fieldExpires:
		return t.setNumber(f)
	default:
		if err := f.Unknown(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		return nil
	}
}

func (t *Ticket) setNumber(f tlv.Field) error {
	v, err := f.Uint()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch f.Number {
	case fieldRole:
		t.Role = Role(min(v, 255))
	case fieldHandle:
		t.Handle = Handle(v)
	case fieldConnector:
		t.Connector = Handle(v)
	case fieldRate:
		t.BytesPerSecond = v
	case fieldFlows:
		t.Flows = v
	case fieldNotBefore:
		t.NotBefore, err = seconds(v)
	case fieldExpires:
		t.Expires, err = seconds(v)
	}
	return err
}

var errTime = errors.New("time out of range")

// maxSeconds is the year 9999; a larger value would overflow time arithmetic.
const maxSeconds = 253402300799

func seconds(v uint64) (time.Time, error) {
	if v > maxSeconds {
		return time.Time{}, fmt.Errorf("%w: %w", ErrMalformed, errTime)
	}
	return time.Unix(int64(v), 0), nil
}

func setBytes(dst []byte, f tlv.Field) error {
	if len(f.Value) != len(dst) {
		return fmt.Errorf("%w: field %d has %d bytes", ErrMalformed, f.Number, len(f.Value))
	}
	copy(dst, f.Value)
	return nil
}
