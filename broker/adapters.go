package broker

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/proto/ids"
)

// epoch is the restore epoch in force.
type epoch struct{ n atomic.Uint64 }

func (e *epoch) get() uint64  { return e.n.Load() }
func (e *epoch) set(n uint64) { e.n.Store(n) }

// sources joins the leaves for authorize.Sources.
type sources struct{ b *Broker }

func (s sources) User(ctx context.Context, id ids.UserID) (directory.User, error) {
	return s.b.dir.User(ctx, id)
}

func (s sources) Device(ctx context.Context, id ids.DeviceID) (registry.Device, error) {
	return s.b.registry.Device(ctx, id)
}

func (s sources) Facts(ctx context.Context, id ids.DeviceID) (registry.DeviceFacts, error) {
	return s.b.registry.Facts(ctx, id)
}

func (s sources) Session(ctx context.Context, id ids.SessionID) (session.Session, error) {
	return s.b.sessions.Session(ctx, id)
}

func (s sources) Connectors(ctx context.Context) ([]registry.Connector, error) {
	return s.b.registry.Connectors(ctx, "")
}

func (s sources) Catalog() *catalog.Snapshot { return s.b.catalog.Current() }

// oidcKeys hands the ring's OpenID keys to the provider.
type oidcKeys struct{ ring *keys.Ring }

func (k oidcKeys) SigningKey(context.Context) (identity.SigningKey, error) {
	key, err := k.ring.Newest(keys.OIDCKey)
	if err != nil {
		return identity.SigningKey{}, err
	}
	return identity.SigningKey{ID: key.ID().String()[:16], Signer: key.Signer()}, nil
}

func (k oidcKeys) VerifyKeys(context.Context) ([]identity.VerifyKey, error) {
	var out []identity.VerifyKey
	for _, key := range k.ring.All(keys.OIDCKey) {
		out = append(out, identity.VerifyKey{ID: key.ID().String()[:16], Public: key.Signer().Public()})
	}
	return out, nil
}

// sealer seals the secrets of identity with the data key.
type sealer struct{ box *keys.DataBox }

func (s sealer) Seal(_ context.Context, purpose string, plain []byte) ([]byte, error) {
	return []byte(s.box.Seal(purpose, plain)), nil
}

func (s sealer) Open(_ context.Context, purpose string, sealed []byte) ([]byte, error) {
	return s.box.Open(purpose, string(sealed))
}

// suffixes keeps what the set-up page asks for.
type suffixes struct{ catalog *catalog.Catalog }

func (suffixes) CheckNameSuffix(suffix string) ([]string, error) {
	_, warnings, err := catalog.CheckSuffixes([]string{suffix})
	return warnings, err
}

func (s suffixes) SetNameSuffix(ctx context.Context, suffix string) error {
	_, err := s.catalog.SetSuffixes(ctx, []string{suffix}, s.catalog.Current().SuffixVersion())
	return err
}

// watch yields the store's changes for the reactor.
func (b *Broker) watch(ctx context.Context) iter.Seq2[authorize.Changes, error] {
	return func(yield func(authorize.Changes, error) bool) {
		for batch, err := range b.store.Watch(ctx, 0) {
			out := authorize.Changes{Reread: batch.Reread}
			for _, c := range batch.Changes {
				out.List = append(out.List, authorize.Change{Topic: c.Topic, Key: c.Key})
			}
			if batch.Version.Epoch != 0 {
				b.epoch.set(batch.Version.Epoch)
			}
			if !yield(out, err) {
				return
			}
		}
	}
}

// reload reads anew what the topics name; nil asks for everything.
func (b *Broker) reload(ctx context.Context, topics map[string]bool) error {
	var errs []error
	if topics == nil || topics[catalog.TopicApp] || topics[catalog.TopicSite] || topics[catalog.TopicSuffix] {
		errs = append(errs, b.catalog.Reload(ctx))
	}
	if topics == nil || topics[store.TopicPolicy] {
		errs = append(errs, b.decide.Load(ctx))
	}
	if topics == nil || topics["keys"] {
		errs = append(errs, b.ring.Load(ctx))
	}
	if topics == nil || topics[grants.TopicRevocation] {
		errs = append(errs, b.ledger.Load(ctx, b.epoch.get(), time.Now()))
	}
	return errors.Join(errs...)
}

// reserved are the ports of this broker: no app may point at them, or an app would be a
// way around sign-in.
func (b *Broker) reserved() []catalog.Reserved {
	list := []catalog.Reserved{endpoint(b.cfg.hostPort())}
	if b.cfg.Health != "off" {
		list = append(list, endpoint(b.cfg.Health))
	}
	return list
}

func endpoint(hostPort string) catalog.Reserved {
	host, text, _ := net.SplitHostPort(hostPort) // both were parsed before
	n, _ := strconv.ParseUint(text, 10, 16)
	return catalog.Reserved{Host: host, Port: uint16(n)}
}

func (b *Broker) hasOwner(ctx context.Context) bool {
	users, err := b.dir.Users(ctx, directory.Query{})
	if err != nil {
		return false
	}
	for _, u := range users {
		if u.Admin == directory.RoleOwner && !u.Disabled {
			return true
		}
	}
	return false
}

// serverIdentity is the identity of the broker's server key: the key of its relay's row.
func (b *Broker) serverIdentity() (registry.Identity, error) {
	key, err := b.ring.Newest(keys.ServerKey)
	if err != nil {
		return registry.Identity{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Signer().Public())
	if err != nil {
		return registry.Identity{}, err
	}
	return registry.Identity{Key: ids.KeyIDOf(spki), SPKI: spki}, nil
}

const (
	serverCertLife  = 7 * 24 * time.Hour
	serverCertRenew = serverCertLife / 2
)

// internalCert returns the source of the broker's own certificate, issued anew at half of
// its life.
func (b *Broker) internalCert() func() (*tls.Certificate, error) {
	var mu sync.Mutex
	var cert *tls.Certificate
	var renew time.Time
	return func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if cert != nil && time.Now().Before(renew) {
			return cert, nil
		}
		fresh, err := b.issueServer()
		if err != nil {
			return nil, err
		}
		cert, renew = fresh, time.Now().Add(serverCertRenew)
		return cert, nil
	}
}

func (b *Broker) issueServer() (*tls.Certificate, error) {
	key, err := b.ring.Newest(keys.ServerKey)
	if err != nil {
		return nil, err
	}
	pub, ok := key.Signer().Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("server key is not ECDSA")
	}
	var names []string
	var addrs []netip.Addr
	if ip, err := netip.ParseAddr(b.cfg.host()); err == nil {
		addrs = append(addrs, ip)
	} else {
		names = append(names, b.cfg.host())
	}
	der, err := b.ca.IssueServer(pub, b.id, names, addrs, serverCertLife)
	if err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, b.ca.Certificate().Raw}, PrivateKey: key.Signer()}, nil
}
