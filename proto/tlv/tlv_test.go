package tlv_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/postern-zt/postern/proto/tlv"
)

func message() []byte {
	var w tlv.Writer
	w.PutUint(1, true, 1)
	w.PutString(2, false, "wiki")
	w.Put(9, true, []byte{0xff})
	w.Put(9, true, nil)
	return w.Bytes()
}

func TestKnownAnswer(t *testing.T) {
	if got, want := hex.EncodeToString(message()), "030101"+"040477696b69"+"1301ff"+"1300"; got != want {
		t.Fatalf("encoding changed: %s, want %s", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	fields, err := tlv.Parse(message())
	if err != nil || len(fields) != 4 {
		t.Fatalf("Parse: %d fields, %v", len(fields), err)
	}
	if v, err := fields[0].Uint(); err != nil || v != 1 || !fields[0].Critical {
		t.Errorf("field 1 = %v, %v", fields[0], err)
	}
	if string(fields[1].Value) != "wiki" || fields[1].Critical {
		t.Errorf("field 2 = %v", fields[1])
	}
	if err := fields[2].Unknown(); !errors.Is(err, tlv.ErrUnknownCritical) {
		t.Errorf("unknown critical field: %v", err)
	}
	if err := fields[1].Unknown(); err != nil {
		t.Errorf("unknown optional field: %v", err)
	}
}

// TestTruncation cuts the message everywhere: each cut inside a field must be noticed.
func TestTruncation(t *testing.T) {
	b := message()
	whole := map[int]bool{0: true, 3: true, 9: true, 12: true}
	for n := range b {
		if _, err := tlv.Parse(b[:n]); (err == nil) != whole[n] {
			t.Errorf("Parse of the first %d bytes: %v", n, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	cases := map[string]struct {
		in   []byte
		want error
	}{
		"padded key":      {[]byte{0x82, 0x00, 0x00}, tlv.ErrNotCanonical},
		"order":           {[]byte{0x04, 0x00, 0x02, 0x00}, tlv.ErrNotCanonical},
		"length past end": {[]byte{0x02, 0x05, 0x00}, tlv.ErrTruncated},
		"huge length":     {[]byte{0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, tlv.ErrTruncated},
		"huge number":     {[]byte{0xff, 0xff, 0xff, 0x7f, 0x00}, tlv.ErrNotCanonical},
		"too large":       {make([]byte, tlv.MaxMessage+1), tlv.ErrTooLarge},
	}
	for name, c := range cases {
		if _, err := tlv.Parse(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: Parse = %v, want %v", name, err, c.want)
		}
	}
}

// FuzzParse holds the canonical property: what parses encodes back to the same bytes.
func FuzzParse(f *testing.F) {
	f.Add(message())
	f.Add([]byte{0x82, 0x00, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := tlv.Parse(b)
		if err != nil {
			return
		}
		var w tlv.Writer
		for _, fd := range fields {
			w.Put(fd.Number, fd.Critical, fd.Value)
		}
		if !bytes.Equal(w.Bytes(), b) {
			t.Errorf("%x parses but encodes to %x", b, w.Bytes())
		}
	})
}
