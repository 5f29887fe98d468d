package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
)

const (
	backoffFirst = time.Second
	backoffMost  = 5 * time.Minute
	// keyPause is the least time between two reads of the keys that found nothing new.
	keyPause = 10 * time.Second
	maxKeys  = 64
)

// backoff doubles the pause with each failure. Its owner guards it.
type backoff struct {
	pause time.Duration
	until time.Time
}

func (b *backoff) allowed(now time.Time) bool { return !now.Before(b.until) }

func (b *backoff) failed(now time.Time) {
	b.pause = min(max(2*b.pause, backoffFirst), backoffMost)
	b.until = now.Add(b.pause)
}

func (b *backoff) succeeded() { *b = backoff{} }

// keyCache is the key set of one issuer. An unknown key id makes it read the keys again,
// which is how issuers rotate; failures and useless reads are followed by a pause, so that
// neither a broken issuer nor somebody with invented key ids makes us knock all day. It
// implements go-oidc's KeySet and is safe for concurrent use.
type keyCache struct {
	client *http.Client
	url    string
	now    func() time.Time
	flight sync.Mutex // held while reading, so that readers at once share one request

	mu   sync.Mutex
	keys []jose.JSONWebKey
	wait backoff
	next time.Time // earliest next read
}

var _ gooidc.KeySet = (*keyCache)(nil)

func newKeyCache(client *http.Client, url string, now func() time.Time) *keyCache {
	return &keyCache{client: client, url: url, now: now}
}

// VerifySignature returns the payload of a token signed under one of the issuer's keys. The
// caller has checked the algorithm.
func (c *keyCache) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSigned(token, asymmetric())
	if err != nil || len(jws.Signatures) != 1 {
		return nil, refuse(ReasonTokenMalformed, err)
	}
	if payload, ok := c.try(jws); ok {
		return payload, nil
	}
	if err := c.reread(ctx); err != nil {
		return nil, err
	}
	if payload, ok := c.try(jws); ok {
		return payload, nil
	}
	return nil, refuse(ReasonTokenSignature, errors.New("signed under no key of the issuer"))
}

func (c *keyCache) try(jws *jose.JSONWebSignature) ([]byte, bool) {
	c.mu.Lock()
	keys := c.keys
	c.mu.Unlock()
	id := jws.Signatures[0].Header.KeyID
	for _, k := range keys {
		if id != "" && k.KeyID != "" && k.KeyID != id {
			continue
		}
		if payload, err := jws.Verify(k); err == nil {
			return payload, true
		}
	}
	return nil, false
}

// reread reads the keys unless it is too soon; then the known keys have to do.
func (c *keyCache) reread(ctx context.Context) error {
	c.flight.Lock()
	defer c.flight.Unlock()
	c.mu.Lock()
	unknown, soon := len(c.keys) == 0, c.now().Before(c.next)
	c.mu.Unlock()
	if soon && unknown {
		return refuse(ReasonIdPUnreachable, errors.New("waiting before the next attempt"))
	}
	if soon {
		return nil
	}
	return c.refresh(ctx)
}

// refresh reads the keys now.
func (c *keyCache) refresh(ctx context.Context) error {
	keys, err := c.fetch(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.wait.failed(c.now())
		c.next = c.wait.until
		return refuse(ReasonIdPUnreachable, err)
	}
	c.wait.succeeded()
	c.next = c.now().Add(keyPause)
	c.keys = keys
	return nil
}

func (c *keyCache) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	ctx, cancel := context.WithTimeout(ctx, idpTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read in full or not at all
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("keys: status %d", resp.StatusCode)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&set); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return usableKeys(set.Keys)
}

// usableKeys leaves out what we do not know; issuers publish keys of many kinds.
func usableKeys(raw []json.RawMessage) ([]jose.JSONWebKey, error) {
	if len(raw) > maxKeys {
		return nil, fmt.Errorf("keys: more than %d", maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, r := range raw {
		var k jose.JSONWebKey
		if json.Unmarshal(r, &k) == nil && k.Valid() && k.IsPublic() && k.Use != "enc" {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("keys: none that can be used")
	}
	return keys, nil
}

func asymmetric() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512,
		jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
	}
}

// keyedLock serialises work per key within this process.
type keyedLock struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func newKeyedLock() *keyedLock { return &keyedLock{held: map[string]chan struct{}{}} }

// lock waits until nobody else holds key, or ctx ends.
func (l *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[key]
		if !ok {
			mine := make(chan struct{})
			l.held[key] = mine
			l.mu.Unlock()
			return func() { l.release(key, mine) }, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *keyedLock) release(key string, mine chan struct{}) {
	l.mu.Lock()
	delete(l.held, key)
	l.mu.Unlock()
	close(mine)
}
