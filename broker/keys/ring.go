package keys

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Purpose says what a key is for; a key serves one purpose only.
type Purpose string

// The purposes of this release. Keys of the installation are shared by all brokers, keys of
// a broker are its own.
const (
	CAKey        Purpose = "ca"         // installation: ECDSA P-256, self-signed, 10 years
	OIDCKey      Purpose = "oidc"       // installation: ECDSA P-256, signs tokens of our own provider
	CookieSecret Purpose = "cookie"     // installation: 64 random bytes for browser cookies
	TokenSecret  Purpose = "token"      // installation: 64 random bytes for hashes of one-time codes
	DataKey      Purpose = "data"       // installation: 32 random bytes, seals secrets in the store
	SigningKey   Purpose = "signing"    // broker: Ed25519, signs grants, statements, audit segments
	ServerKey    Purpose = "server-tls" // broker: ECDSA P-256, TLS of the public port
	RelayKey     Purpose = "relay-hpke" // broker: 32 bytes, HPKE of the relay inside the broker
)

// perBroker reports whether each broker has its own key for p.
func (p Purpose) perBroker() bool {
	return p == SigningKey || p == ServerKey || p == RelayKey
}

// Sealed is a key as it rests in the store.
type Sealed struct {
	Purpose Purpose
	Owner   ids.BrokerID // empty for keys of the installation
	Serial  uint64       // 1, 2, ... for each purpose and owner
	KEK     string       // id of the key-encryption key
	Public  string       // base64: certificate, else SubjectPublicKeyInfo, else empty
	Box     string       // the sealed private part
	Created time.Time
}

// Store is what the ring needs from the database.
type Store interface {
	// SealedKeys returns all keys of the installation and of all brokers.
	SealedKeys(ctx context.Context) ([]Sealed, error)
	// AddSealedKey adds one key; added is false when its serial is taken.
	AddSealedKey(ctx context.Context, k Sealed) (added bool, err error)
	// ReplaceSealedKeys stores new boxes for existing keys, all or none.
	ReplaceSealedKeys(ctx context.Context, all []Sealed) error
}

// Config of a Ring. All fields are required, except Now.
type Config struct {
	Store  Store
	KEK    *KEK
	Broker ids.BrokerID
	Org    ids.OrgID
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Ring holds the keys of one broker in memory.
type Ring struct {
	cfg Config

	mu   sync.RWMutex
	keys map[Purpose][]*Key     // guarded by mu; newest first
	pub  map[Purpose][]Verifier // guarded by mu; public parts of all brokers
}

// New checks cfg. Load reads the keys.
func New(cfg Config) (*Ring, error) {
	if cfg.Store == nil || cfg.KEK == nil || cfg.Broker == "" || cfg.Org == "" {
		return nil, errors.New("keys: Store, KEK, Broker and Org are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Ring{cfg: cfg}, nil
}

// KEKID names the key-encryption key in use, for the operator.
func (r *Ring) KEKID() string { return r.cfg.KEK.ID() }

// Load reads all keys of this broker and of the installation. On error the ring keeps what
// it had.
func (r *Ring) Load(ctx context.Context) error {
	rows, err := r.cfg.Store.SealedKeys(ctx)
	if err != nil {
		return fmt.Errorf("load keys: %w", err)
	}
	keys := make(map[Purpose][]*Key)
	pub := make(map[Purpose][]Verifier)
	for _, row := range rows {
		pub[row.Purpose] = append(pub[row.Purpose], Verifier{Owner: row.Owner, Serial: row.Serial, Public: row.Public})
		if row.Owner != "" && row.Owner != r.cfg.Broker {
			continue
		}
		k, err := r.open(row)
		if err != nil {
			return fmt.Errorf("load key %s %d: %w", row.Purpose, row.Serial, err)
		}
		keys[row.Purpose] = insertNewestFirst(keys[row.Purpose], k)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.pub = keys, pub
	return nil
}

func insertNewestFirst(list []*Key, k *Key) []*Key {
	i := 0
	for i < len(list) && list[i].Serial > k.Serial {
		i++
	}
	return append(list[:i], append([]*Key{k}, list[i:]...)...)
}

// Newest returns the key that signs or seals now, or ErrMissing.
func (r *Ring) Newest(p Purpose) (*Key, error) {
	if all := r.All(p); len(all) > 0 {
		return all[0], nil
	}
	return nil, fmt.Errorf("%w: %s", ErrMissing, p)
}

// All returns all keys for p, newest first: older ones still verify and open.
func (r *Ring) All(p Purpose) []*Key {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return append([]*Key(nil), r.keys[p]...)
}

// Ensure returns the newest key for p and makes one when there is none.
func (r *Ring) Ensure(ctx context.Context, p Purpose) (*Key, error) {
	k, err := r.Newest(p)
	if errors.Is(err, ErrMissing) {
		return r.Create(ctx, p)
	}
	return k, err
}

// Create makes a new key for p, which becomes the newest. When another broker makes one at
// the same time, one of them wins and both get that one.
func (r *Ring) Create(ctx context.Context, p Purpose) (*Key, error) {
	serial := uint64(1)
	if k, err := r.Newest(p); err == nil {
		serial = k.Serial + 1
	}
	row, err := r.generate(p, serial)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", p, err)
	}
	if _, err := r.cfg.Store.AddSealedKey(ctx, row); err != nil {
		return nil, fmt.Errorf("create key %s: %w", p, err)
	}
	if err := r.Load(ctx); err != nil {
		return nil, err
	}
	return r.Newest(p)
}

// Rewrap seals all keys of all brokers with next, all or none. Afterwards every broker must
// be started with the new key file.
func (r *Ring) Rewrap(ctx context.Context, next *KEK) error {
	rows, err := r.cfg.Store.SealedKeys(ctx)
	if err != nil {
		return fmt.Errorf("rewrap keys: %w", err)
	}
	for i, row := range rows {
		secret, err := r.cfg.KEK.Open(row.context(), row.Box)
		if err != nil {
			return fmt.Errorf("rewrap key %s %d: %w", row.Purpose, row.Serial, err)
		}
		rows[i].KEK, rows[i].Box = next.ID(), next.Seal(row.context(), secret)
	}
	if err := r.cfg.Store.ReplaceSealedKeys(ctx, rows); err != nil {
		return fmt.Errorf("rewrap keys: %w", err)
	}
	return nil
}

// context binds a box to its row: a box that was moved to another row does not open.
func (s Sealed) context() string {
	return fmt.Sprintf("key\x00%s\x00%s\x00%d", s.Purpose, s.Owner, s.Serial)
}
