package control_test

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/control/controltest"
)

const week = 7 * 24 * time.Hour

// authorityFake issues certificates of a week, or fails.
type authorityFake struct {
	*controltest.Authority
	t     *testing.T
	fail  atomic.Bool
	calls []time.Time
	// backdate is how old a certificate is when it is issued.
	backdate time.Duration
}

func (f *authorityFake) renew(_ context.Context, csr []byte) ([][]byte, error) {
	f.calls = append(f.calls, time.Now())
	if f.fail.Load() {
		return nil, errors.New("the broker is away")
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.chain(req.PublicKey, f.backdate), nil
}

func (f *authorityFake) chain(pub any, age time.Duration) [][]byte {
	from := time.Now().Add(-age)
	return [][]byte{f.IssueFor("/relay/rly_1", pub, from, from.Add(week), x509.ExtKeyUsageClientAuth).Raw, f.CA.Raw}
}

// member runs KeepRenewed with a certificate of an age for d and returns what was installed.
func (f *authorityFake) member(age, d time.Duration) (m *control.Member, installed int) {
	f.t.Helper()
	key := controltest.Key(f.t)
	m, err := control.NewMember(key, f.chain(key.Public(), age), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.KeepRenewed(ctx, f.renew, func([][]byte) error { installed++; return nil }); err != nil {
			f.t.Errorf("KeepRenewed = %v", err)
		}
	})
	<-time.After(d) // on the bubble's clock
	cancel()
	wg.Wait()
	return m, installed
}

func TestRenewsAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &authorityFake{Authority: controltest.New(t), t: t}
		began := time.Now()
		m, installed := f.member(0, week)
		if n := len(f.calls); n < 1 || n > 3 || installed != n {
			t.Fatalf("%d renewals in a week, %d installed", n, installed)
		}
		if at := f.calls[0].Sub(began); at < week*4/10 || at > week*6/10 {
			t.Errorf("renewed after %s of %s", at, week)
		}
		if left := time.Until(m.NotAfter()); left < week*3/10 {
			t.Errorf("the certificate has %s left", left)
		}
	})
}

// TestRenewsWhenTheBrokerIsBack: also a certificate that has expired meanwhile.
func TestRenewsWhenTheBrokerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &authorityFake{Authority: controltest.New(t), t: t}
		f.fail.Store(true)
		back := time.AfterFunc(10*24*time.Hour, func() { f.fail.Store(false) })
		defer back.Stop()
		m, installed := f.member(week/2, 10*24*time.Hour+5*time.Minute)
		if installed != 1 || time.Until(m.NotAfter()) < 6*24*time.Hour {
			t.Errorf("five minutes after the broker came back: %d installed, until %s", installed, m.NotAfter())
		}
		if n := len(f.calls); n > 3*10*24*60 {
			t.Errorf("%d tries in ten days", n)
		}
	})
}

// TestWrongClockDoesNotFlood: to a clock far ahead every certificate is old.
func TestWrongClockDoesNotFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &authorityFake{Authority: controltest.New(t), t: t, backdate: 30 * 24 * time.Hour}
		f.member(30*24*time.Hour, time.Hour)
		if n := len(f.calls); n < 2 || n > 9 {
			t.Errorf("%d renewals in an hour", n)
		}
	})
}

func TestMemberRefusesForeignCertificates(t *testing.T) {
	f := &authorityFake{Authority: controltest.New(t), t: t}
	key, other := controltest.Key(t), controltest.Key(t)
	m, err := control.NewMember(key, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][][]byte{
		"none": nil, "garbage": {{1, 2}}, "of another key": f.chain(other.Public(), 0),
	} {
		if err := m.SetChain(chain); err == nil || m.Enrolled() {
			t.Errorf("%s: installed, %v", name, err)
		}
	}
	if _, err := control.NewMember(key, f.chain(other.Public(), 0), nil); err == nil {
		t.Error("NewMember took the certificate of another key")
	}
	if c, err := m.Certificate(); err != nil || c.PrivateKey != key || !m.NotAfter().IsZero() {
		t.Errorf("before enrolment: %v, %v", c, err)
	}
	if err := m.SetChain(f.chain(key.Public(), 0)); err != nil || !m.Enrolled() {
		t.Errorf("our own certificate: %v", err)
	}
	expired, err := control.NewMember(key, f.chain(key.Public(), 2*week), nil)
	if err != nil || !expired.Enrolled() {
		t.Errorf("an expired certificate must be kept, it renews: %v", err)
	}
}
