package control

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

const (
	renewRetryMin = 30 * time.Second
	renewRetryMax = time.Hour
	// renewAgain is the least time between two renewals: a clock far ahead makes every
	// certificate look old.
	renewAgain = 10 * time.Minute
)

// Member is a device, connector or relay towards its broker: an identity key and the
// certificate that the broker issued for it, renewed at half of its life +- 20 %
// (decisions rule 3). It is safe for concurrent use.
type Member struct {
	key crypto.Signer
	id  ids.KeyID
	now func() time.Time

	mu    sync.Mutex
	chain [][]byte
	leaf  *x509.Certificate
}

// NewMember returns the member with an identity key; chain is empty before enrolment.
func NewMember(key crypto.Signer, chain [][]byte, now func() time.Time) (*Member, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("identity key: %w", err)
	}
	if now == nil {
		now = time.Now
	}
	m := &Member{key: key, id: ids.KeyIDOf(spki), now: now}
	if len(chain) == 0 {
		return m, nil
	}
	return m, m.SetChain(chain)
}

// KeyID names the identity key.
func (m *Member) KeyID() ids.KeyID { return m.id }

// Key is the identity key; it signs link certificates too.
func (m *Member) Key() crypto.Signer { return m.key }

// Enrolled reports whether the broker has issued a certificate, expired or not.
func (m *Member) Enrolled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaf != nil
}

// NotAfter returns when the certificate ends.
func (m *Member) NotAfter() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaf == nil {
		return time.Time{}
	}
	return m.leaf.NotAfter
}

// SetChain installs a certificate chain, leaf first, which must be for our own key.
func (m *Member) SetChain(chain [][]byte) error {
	if len(chain) == 0 {
		return errors.New("certificate chain is empty")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if ids.KeyIDOf(leaf.RawSubjectPublicKeyInfo) != m.id {
		return errors.New("certificate is for another key")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chain, m.leaf = chain, leaf
	return nil
}

// Certificate proves the identity key: with the broker's certificate when there is one,
// also an expired one, for that opens nothing but its own renewal.
func (m *Member) Certificate() (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaf == nil {
		return SelfSigned(m.key, m.now())
	}
	return &tls.Certificate{Certificate: m.chain, PrivateKey: m.key, Leaf: m.leaf}, nil
}

// Request returns a certificate request for the identity key.
func (m *Member) Request() ([]byte, error) { return Request(m.key) }

// KeepRenewed renews the certificate until ctx ends. renew asks the broker, installed is
// told each new chain so that it can be stored and connections be opened anew.
func (m *Member) KeepRenewed(ctx context.Context, renew func(ctx context.Context, csr []byte) ([][]byte, error), installed func(chain [][]byte) error) error {
	retry := renewRetryMin
	wait := m.untilRenewal()
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := m.renewOnce(ctx, renew, installed); err != nil {
			wait, retry = jitter(min(retry, m.patience())), min(2*retry, renewRetryMax)
			continue
		}
		retry, wait = renewRetryMin, max(jitter(renewAgain), m.untilRenewal())
	}
}

func (m *Member) renewOnce(ctx context.Context, renew func(context.Context, []byte) ([][]byte, error), installed func([][]byte) error) error {
	csr, err := m.Request()
	if err != nil {
		return err
	}
	chain, err := renew(ctx, csr)
	if err != nil {
		return err
	}
	if err := m.SetChain(chain); err != nil {
		return err
	}
	return installed(chain)
}

// patience is the longest pause between attempts. Without a valid certificate nothing else
// works, so a machine whose broker was away for days asks often and is back soon after it.
func (m *Member) patience() time.Duration {
	if m.now().After(m.NotAfter()) {
		return renewRetryMin
	}
	return renewRetryMax
}

// untilRenewal is the time to half of the certificate's life, +- 20 %.
func (m *Member) untilRenewal() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaf == nil {
		return renewRetryMax
	}
	half := m.leaf.NotAfter.Sub(m.leaf.NotBefore) / 2
	at := m.leaf.NotBefore.Add(jitter(half))
	return max(0, at.Sub(m.now()))
}

// jitter spreads d over +- 20 %, so that a fleet does not act at once (rule 32).
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
