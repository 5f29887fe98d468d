package control_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/netstack/control"
)

// TestRenewsSoonAfterALongAbsence: a member whose broker was away for longer than its
// certificate lives has a new one within a minute of the broker's return.
func TestRenewsSoonAfterALongAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, key := newAuthority(t), newKey(t)
		issue := func() [][]byte {
			leaf := a.leaf("/device/dev_1", x509.ExtKeyUsageClientAuth)
			leaf.NotBefore, leaf.NotAfter = time.Now(), time.Now().Add(7*24*time.Hour)
			return [][]byte{a.sign(leaf, a.cert, key.Public()).Raw, a.cert.Raw}
		}
		m, err := control.NewMember(key, issue(), nil)
		if err != nil {
			t.Fatal(err)
		}
		back, end := time.Now().Add(10*24*time.Hour), m.NotAfter()
		early := 0
		renew := func(context.Context, []byte) ([][]byte, error) {
			switch {
			case !time.Now().Before(back):
				return issue(), nil
			case time.Now().Before(end):
				early++
			}
			return nil, errors.New("the broker is away")
		}
		renewed := make(chan time.Time, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- m.KeepRenewed(ctx, renew, func([][]byte) error { renewed <- time.Now(); return nil })
		}()
		if late := (<-renewed).Sub(back); late > time.Minute {
			t.Errorf("renewed %s after the broker was back", late)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if early == 0 || early > 150 {
			t.Errorf("asked %d times while the certificate was valid, want about once an hour", early)
		}
	})
}
