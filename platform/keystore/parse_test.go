package keystore

import (
	"errors"
	"testing"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAQID\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nAQID\n-----END EC PRIVATE KEY-----\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := parse(data); (key == nil) == (err == nil) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("parse(%q) = %v, %v", data, key, err)
		}
	})
}
