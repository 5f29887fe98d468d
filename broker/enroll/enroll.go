package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

// Topic of the change events that the store writes; the key is the token's id.
const Topic = "join_token"

const (
	// DefaultTTL is how long a one-time token is good when the admin says nothing.
	DefaultTTL = 24 * time.Hour
	// maxTTL bounds the life of a site key: a forgotten one must not open for ever.
	maxTTL = 366 * 24 * time.Hour
	// maxLabel bounds the admin's note on a token.
	maxLabel = 128
)

// Kind is what a token enrols. An unknown kind enrols nothing.
type Kind string

// The kinds.
const (
	ForConnector Kind = "connector"
	ForRelay     Kind = "relay"
)

// Token is the row of a join token. The secret is not in it.
type Token struct {
	ID   ids.TokenID
	Hash Hash
	Kind Kind
	// Site is where a connector will stand; empty for a relay.
	Site ids.SiteID
	// Label is the admin's note.
	Label string
	// Multi makes it a site key, good for any number of keys until it expires.
	Multi bool
	// MayPublish lets the connector publish new apps without approval.
	MayPublish bool
	CreatedAt  time.Time
	ExpiresAt  time.Time
	RevokedAt  time.Time // zero: not revoked
	Uses       int
	LastUsed   time.Time // zero: never
}

// Use is one machine that a token enrolled.
type Use struct {
	Token ids.TokenID
	Key   ids.KeyID
	At    time.Time
	// Subject is the id of the connector or relay.
	Subject string
}

// Store keeps tokens. broker/store implements it on both engines. Errors satisfy errors.Is
// with those of this package.
type Store interface {
	// Atomically runs fn in one writing transaction; two of them never overlap. fn passes
	// its context to the other methods and to those of the registry's store.
	Atomically(ctx context.Context, fn func(ctx context.Context) error) error
	CreateToken(ctx context.Context, t Token) error
	// Tokens lists all tokens, newest first.
	Tokens(ctx context.Context) ([]Token, error)
	Token(ctx context.Context, id ids.TokenID) (Token, error)
	// FindToken returns the token whose hash begins with lookup, or ErrUnknown.
	FindToken(ctx context.Context, lookup []byte) (Token, error)
	// RevokeToken notes the time unless the token is revoked already.
	RevokeToken(ctx context.Context, id ids.TokenID, at time.Time) error
	// TokenUse returns the use of a token by a key, or ErrNotFound.
	TokenUse(ctx context.Context, id ids.TokenID, key ids.KeyID) (Use, error)
	// AddTokenUse stores a use and counts it.
	AddTokenUse(ctx context.Context, u Use) error
}

// Registry is what a redeemed token writes to; *registry.Registry has it.
type Registry interface {
	Connector(ctx context.Context, id ids.ConnectorID) (registry.Connector, error)
	EnrolConnector(ctx context.Context, c registry.Connector, now time.Time) (registry.Connector, error)
	Relay(ctx context.Context, id ids.RelayID) (registry.Relay, error)
	EnrolRelay(ctx context.Context, r registry.Relay, now time.Time) (registry.Relay, error)
}

// Enroller makes, revokes and redeems join tokens.
type Enroller struct {
	store Store
	reg   Registry
}

// New returns an Enroller. reg must write to the same database as store.
func New(store Store, reg Registry) *Enroller { return &Enroller{store: store, reg: reg} }

// Wish describes a token to be made. A zero TTL means DefaultTTL.
type Wish struct {
	Kind       Kind
	Site       ids.SiteID
	SiteName   string // for the slug in the text
	Label      string
	Multi      bool
	MayPublish bool
	TTL        time.Duration
}

// Create makes a token and returns its row and its text, which is shown once.
func (e *Enroller) Create(ctx context.Context, w Wish, now time.Time) (Token, Text, error) {
	if err := w.check(); err != nil {
		return Token{}, Text{}, err
	}
	text := newText(w.SiteName)
	t := Token{
		ID: ids.New[ids.TokenID](), Hash: text.hash(), Kind: w.Kind, Site: w.Site, Label: w.Label,
		Multi: w.Multi, MayPublish: w.MayPublish, CreatedAt: now, ExpiresAt: now.Add(w.TTL),
	}
	if w.TTL == 0 {
		t.ExpiresAt = now.Add(DefaultTTL)
	}
	if err := e.store.CreateToken(ctx, t); err != nil {
		return Token{}, Text{}, fmt.Errorf("create join token: %w", err)
	}
	return t, text, nil
}

func (w Wish) check() error {
	switch {
	case w.Kind != ForConnector && w.Kind != ForRelay:
		return fmt.Errorf("%w: kind %q", ErrInvalid, w.Kind)
	case w.Kind == ForConnector && w.Site == "":
		return fmt.Errorf("%w: a connector's token names a site", ErrInvalid)
	case w.Kind == ForRelay && (w.Site != "" || w.MayPublish):
		return fmt.Errorf("%w: a relay's token has no site and publishes nothing", ErrInvalid)
	case w.TTL < 0 || w.TTL > maxTTL:
		return fmt.Errorf("%w: a token lives at most %d days", ErrInvalid, maxTTL/(24*time.Hour))
	case len(w.Label) > maxLabel:
		return fmt.Errorf("%w: the label has more than %d bytes", ErrInvalid, maxLabel)
	}
	return nil
}

// Tokens lists all tokens, newest first.
func (e *Enroller) Tokens(ctx context.Context) ([]Token, error) { return e.store.Tokens(ctx) }

// Revoke ends a token; machines that it enrolled stay.
func (e *Enroller) Revoke(ctx context.Context, id ids.TokenID, now time.Time) error {
	return e.store.RevokeToken(ctx, id, now)
}

// JoinConnector redeems a token for a connector whose key the caller has proven to hold. c
// brings identity, name, address and version; site and rights come from the token. The
// same key with the same token gets the same row again.
func (e *Enroller) JoinConnector(ctx context.Context, text Text, c registry.Connector, now time.Time) (registry.Connector, error) {
	var out registry.Connector
	err := e.redeem(ctx, text, ForConnector, c.Identity.Key, now, redemption{
		again: func(ctx context.Context, subject string) (err error) {
			if out, err = e.reg.Connector(ctx, ids.ConnectorID(subject)); err == nil {
				err = out.Usable()
			}
			return err
		},
		first: func(ctx context.Context, t Token) (subject string, err error) {
			c.Site, c.MayPublish = t.Site, t.MayPublish
			out, err = e.reg.EnrolConnector(ctx, c, now)
			return string(out.ID), err
		},
	})
	if err != nil {
		return registry.Connector{}, err
	}
	return out, nil
}

// JoinRelay redeems a token for a relay whose key the caller has proven to hold.
func (e *Enroller) JoinRelay(ctx context.Context, text Text, r registry.Relay, now time.Time) (registry.Relay, error) {
	var out registry.Relay
	err := e.redeem(ctx, text, ForRelay, r.Identity.Key, now, redemption{
		again: func(ctx context.Context, subject string) (err error) {
			if out, err = e.reg.Relay(ctx, ids.RelayID(subject)); err == nil {
				err = out.Usable()
			}
			return err
		},
		first: func(ctx context.Context, _ Token) (subject string, err error) {
			out, err = e.reg.EnrolRelay(ctx, r, now)
			return string(out.ID), err
		},
	})
	if err != nil {
		return registry.Relay{}, err
	}
	return out, nil
}

// redemption is what differs between the kinds: the second and the first use by a key.
type redemption struct {
	again func(ctx context.Context, subject string) error
	first func(ctx context.Context, t Token) (subject string, err error)
}

// redeem runs check, enrolment and count in one transaction, so that of two machines with a
// one-time token one gets in, and none is half enrolled.
func (e *Enroller) redeem(ctx context.Context, text Text, kind Kind, key ids.KeyID, now time.Time, r redemption) error {
	if text.IsZero() {
		return malformed("it is empty")
	}
	return e.store.Atomically(ctx, func(ctx context.Context) error {
		t, err := e.find(ctx, text, kind)
		if err != nil {
			return err
		}
		if err := t.alive(now); err != nil {
			return err
		}
		use, err := e.store.TokenUse(ctx, t.ID, key)
		if err == nil {
			return r.again(ctx, use.Subject)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		if t.Uses > 0 && !t.Multi {
			return ErrUsed
		}
		subject, err := r.first(ctx, t)
		if err != nil {
			return err
		}
		return e.store.AddTokenUse(ctx, Use{Token: t.ID, Key: key, At: now, Subject: subject})
	})
}

// find returns the token of this text if it is for this kind; any difference is ErrUnknown.
func (e *Enroller) find(ctx context.Context, text Text, kind Kind) (Token, error) {
	hash := text.hash()
	t, err := e.store.FindToken(ctx, hash.Lookup())
	if err != nil {
		return Token{}, err
	}
	if !t.Hash.equal(hash) || t.Kind != kind {
		return Token{}, ErrUnknown
	}
	return t, nil
}

func (t Token) alive(now time.Time) error {
	switch {
	case !t.RevokedAt.IsZero():
		return ErrRevoked
	case !now.Before(t.ExpiresAt):
		return ErrExpired
	default:
		return nil
	}
}
