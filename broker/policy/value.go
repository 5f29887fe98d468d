package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Duration is a time.Duration that is written as text ("12h0m0s") in rules and receipts.
type Duration time.Duration

// String returns the text of the duration.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the duration like "15m0s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration like "15m"; negative ones are refused.
func (d *Duration) UnmarshalText(b []byte) error {
	t, err := time.ParseDuration(string(b))
	if err != nil || t < 0 {
		return fmt.Errorf("malformed duration %.32q", b)
	}
	*d = Duration(t)
	return nil
}

// Value is the value of an attribute: text, a whole number, a boolean, or a list of texts.
// The zero value is "no value". In JSON it is simply that.
type Value struct {
	v any // nil, string, int64, bool or []string
}

// Text returns a text value.
func Text(s string) Value { return Value{s} }

// Number returns a whole-number value.
func Number(n int64) Value { return Value{n} }

// Bool returns a boolean value.
func Bool(b bool) Value { return Value{b} }

// List returns a list value; order and duplicates do not matter.
func List(s ...string) Value {
	l := append([]string{}, s...) // never nil: an empty list is a value
	slices.Sort(l)
	return Value{slices.Compact(l)}
}

// IsZero reports whether there is no value.
func (v Value) IsZero() bool { return v.v == nil }

// Equal reports whether both are the same value of the same type.
func (v Value) Equal(o Value) bool {
	a, isList := v.v.([]string)
	b, otherList := o.v.([]string)
	if isList || otherList {
		return isList && otherList && slices.Equal(a, b)
	}
	return v.v == o.v
}

// String returns the value as people read it.
func (v Value) String() string {
	if v.v == nil {
		return ""
	}
	return fmt.Sprint(v.v)
}

// MarshalJSON writes the plain JSON value.
func (v Value) MarshalJSON() ([]byte, error) { return json.Marshal(v.v) }

// UnmarshalJSON reads text, a whole number, a boolean or a list of texts. Anything else is
// refused.
func (v *Value) UnmarshalJSON(b []byte) error {
	var n int64
	var s string
	var t bool
	var l []string
	switch {
	case string(b) == "null":
		*v = Value{}
	case json.Unmarshal(b, &s) == nil:
		*v = Text(s)
	case json.Unmarshal(b, &n) == nil:
		*v = Number(n)
	case json.Unmarshal(b, &t) == nil:
		*v = Bool(t)
	case json.Unmarshal(b, &l) == nil:
		*v = List(l...)
	default:
		return fmt.Errorf("malformed attribute value %.32q: want text, a whole number, a boolean or a list of texts", b)
	}
	return nil
}
