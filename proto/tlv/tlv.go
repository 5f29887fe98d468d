// Package tlv is the field encoding of everything that Postern signs or seals: grants,
// liveness statements, assignments, tickets and the frames' extension fields. It is
// canonical (one encoding for one value), self-delimiting and forward compatible:
//
//	field  = key length value
//	key    = uvarint: number << 1 | critical
//	length = uvarint: bytes of value
//
// Fields stand in ascending order of number; a repeated number is a list. A reader skips
// an unknown field unless its critical bit is set: then the whole message is refused
// (decisions rule 6). Pure package; a Reader borrows its input.
package tlv

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxMessage bounds a message before a byte of it is looked at.
const MaxMessage = 64 << 10

// Errors of Parse and of the Reader, for errors.Is.
var (
	ErrTooLarge        = errors.New("message too large")
	ErrTruncated       = errors.New("message truncated")
	ErrNotCanonical    = errors.New("message not canonical")
	ErrUnknownCritical = errors.New("unknown critical field")
	ErrBadValue        = errors.New("bad field value")
)

// Field is one decoded field. Value is borrowed from the input.
type Field struct {
	Number   uint32
	Critical bool
	Value    []byte
}

// Writer appends fields to a buffer; fields must be added in ascending order of number.
// The zero value is ready. It panics on a wrong order, which is a defect of the caller.
type Writer struct {
	buf  []byte
	last uint32
}

// Bytes returns the encoded message.
func (w *Writer) Bytes() []byte { return w.buf }

// Put appends a field with a raw value.
func (w *Writer) Put(number uint32, critical bool, value []byte) {
	if number < w.last {
		panic("tlv: fields out of order")
	}
	w.last = number
	key := uint64(number) << 1
	if critical {
		key |= 1
	}
	w.buf = binary.AppendUvarint(w.buf, key)
	w.buf = binary.AppendUvarint(w.buf, uint64(len(value)))
	w.buf = append(w.buf, value...)
}

// PutString appends a text field; an empty text is left out.
func (w *Writer) PutString(number uint32, critical bool, s string) {
	if s != "" {
		w.Put(number, critical, []byte(s))
	}
}

// PutUint appends an unsigned number; zero is left out.
func (w *Writer) PutUint(number uint32, critical bool, v uint64) {
	if v != 0 {
		w.Put(number, critical, binary.AppendUvarint(nil, v))
	}
}

// Parse splits a message into its fields, checking order, lengths and minimal numbers.
func Parse(b []byte) ([]Field, error) {
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), MaxMessage)
	}
	var fields []Field
	last := uint32(0)
	for len(b) > 0 {
		f, rest, err := parseField(b)
		if err != nil {
			return nil, err
		}
		if f.Number < last {
			return nil, fmt.Errorf("%w: field %d after %d", ErrNotCanonical, f.Number, last)
		}
		last = f.Number
		fields = append(fields, f)
		b = rest
	}
	return fields, nil
}

func parseField(b []byte) (Field, []byte, error) {
	key, b, err := uvarint(b)
	if err != nil {
		return Field{}, nil, err
	}
	if key>>1 > 1<<20 {
		return Field{}, nil, fmt.Errorf("%w: field number %d", ErrNotCanonical, key>>1)
	}
	n, b, err := uvarint(b)
	if err != nil {
		return Field{}, nil, err
	}
	if n > uint64(len(b)) {
		return Field{}, nil, ErrTruncated
	}
	f := Field{Number: uint32(key >> 1), Critical: key&1 == 1, Value: b[:n:n]}
	return f, b[n:], nil
}

// uvarint reads a minimally encoded number.
func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, ErrTruncated
	}
	if n > 1 && b[n-1] == 0 {
		return 0, nil, fmt.Errorf("%w: padded number", ErrNotCanonical)
	}
	return v, b[n:], nil
}

// Uint reads the value as a minimally encoded unsigned number.
func (f Field) Uint() (uint64, error) {
	v, rest, err := uvarint(f.Value)
	if err != nil || len(rest) != 0 {
		return 0, fmt.Errorf("%w: field %d is not a number", ErrBadValue, f.Number)
	}
	return v, nil
}

// Unknown is the verdict on a field that the reader does not know: nil to skip it.
func (f Field) Unknown() error {
	if f.Critical {
		return fmt.Errorf("%w: %d", ErrUnknownCritical, f.Number)
	}
	return nil
}
