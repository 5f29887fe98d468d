// Package broker wires one broker: the leaves bottom-up, then a run group. It holds no
// logic of its own. cmd/postern-broker runs it; the demo and the scenarios run it in
// process.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/postern-zt/postern/broker/adminapi"
	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/authorize"
	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/controlapi"
	"github.com/postern-zt/postern/broker/decision"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/front"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/tickets"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/netstack/relay"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

// drainTime is how long streams have to say goodbye before the ports close.
const drainTime = 500 * time.Millisecond

// Broker is one broker whose parts are built and whose ports are bound.
type Broker struct {
	cfg      Config
	version  string
	log      *slog.Logger
	id       ids.BrokerID
	org      ids.OrgID
	kek      *keys.KEK
	ring     *keys.Ring
	ca       *keys.CA
	signer   *seal.Signer
	store    *store.Store
	audit    *audit.Log
	dir      *directory.Directory
	identity *identity.Service
	catalog  *catalog.Catalog
	registry *registry.Registry
	enroller *enroll.Enroller
	sessions *session.Sessions
	decide   *decision.Service
	ledger   *grants.Ledger
	auth     *authorize.Authorizer
	reactor  *authorize.Reactor
	tickets  *tickets.Minter
	api      *controlapi.API
	adminAPI *adminapi.API
	relay    *relay.Relay
	relayRow registry.Relay
	epoch    *epoch
	tcp      net.Listener
	udp      *net.UDPConn
	metrics  *metrics
	// internal is the source of the certificate of our own CA.
	internal func() (*tls.Certificate, error)
}

// New checks the configuration, opens database and keys and binds the ports. It starts
// nothing; Close undoes it when Run is never called.
func New(ctx context.Context, cfg Config, version string, log *slog.Logger) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := paths.PrivateDir(cfg.DataDir); err != nil {
		return nil, err
	}
	b := &Broker{cfg: cfg, version: version, log: log, epoch: &epoch{}, metrics: newMetrics()}
	b.internal = b.internalCert()
	for _, step := range []func(context.Context) error{
		b.openStore, b.checkRestored, b.openKeys, b.openRecords, b.openPeople, b.openPolicy, b.openListeners, b.openRelay, b.openAPI, b.openAdmin, b.load, b.repeatCuts,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, b.Close())
		}
	}
	return b, nil
}

func (b *Broker) openStore(ctx context.Context) (err error) {
	b.store, err = store.Open(ctx, store.Config{DSN: b.cfg.Database, Version: b.version, Log: b.log})
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	b.id, err = once(ctx, b.store, "broker", ids.New[ids.BrokerID])
	if err != nil {
		return err
	}
	b.org, err = once(ctx, b.store, "org", ids.New[ids.OrgID])
	return err
}

// once returns a value of the installation that is drawn at the first start.
func once[T ~string](ctx context.Context, s *store.Store, key string, draw func() T) (T, error) {
	v, err := s.MetaOnce(ctx, key, string(draw()))
	return T(v), err
}

func (b *Broker) openKeys(ctx context.Context) (err error) {
	var created bool
	if b.kek, created, err = keys.LoadOrCreateKEK(b.cfg.KEKFile); err != nil {
		return err
	}
	if created {
		b.log.InfoContext(ctx, "key-encryption key created", "path", b.cfg.KEKFile)
	}
	if b.ring, err = keys.New(keys.Config{Store: b.store, KEK: b.kek, Broker: b.id, Org: b.org}); err != nil {
		return err
	}
	if err := b.ring.Load(ctx); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	for _, p := range []keys.Purpose{
		keys.CAKey, keys.OIDCKey, keys.CookieSecret, keys.TokenSecret, keys.DataKey, keys.SigningKey, keys.ServerKey, keys.RelayKey,
	} {
		if _, err := b.ring.Ensure(ctx, p); err != nil {
			return fmt.Errorf("key %s: %w", p, err)
		}
	}
	if b.ca, err = b.ring.CA(); err != nil {
		return err
	}
	key, err := b.ring.Newest(keys.SigningKey)
	if err != nil {
		return err
	}
	b.signer, err = key.Seal()
	return err
}

func (b *Broker) openRecords(context.Context) (err error) {
	box, err := b.ring.Data()
	if err != nil {
		return err
	}
	b.audit, err = audit.New(audit.Config{Store: b.store, Broker: b.id, Signer: b.signer, Sealer: box, Log: b.log})
	return err
}

func (b *Broker) openPeople(context.Context) error {
	secret, err := b.ring.Newest(keys.CookieSecret)
	if err != nil {
		return err
	}
	box, err := b.ring.Data()
	if err != nil {
		return err
	}
	b.dir = directory.New(b.store, nil)
	b.catalog = catalog.New(catalog.Config{Store: b.store, Reserved: b.reserved})
	b.registry = registry.New(b.store)
	b.enroller = enroll.New(b.store, b.registry)
	b.sessions = session.New(b.store)
	b.identity, err = identity.New(identity.Config{
		URL: b.cfg.URL, JoinURL: b.URL(), Directory: b.dir, Store: b.store, Keys: oidcKeys{b.ring}, Sealer: sealer{box}, Secret: secret.Secret(),
		Settings: suffixes{b.catalog}, Log: b.log, Metrics: b.metrics, Audit: b.audit,
	})
	return err
}

func (b *Broker) openPolicy(ctx context.Context) (err error) {
	b.decide, err = decision.New(decision.Config{Store: b.store, Log: b.log})
	if err != nil {
		return err
	}
	if err := b.decide.Load(ctx); err != nil {
		return err
	}
	if b.decide.Current() == nil {
		if _, err := b.decide.Publish(ctx, policy.NewDocument(), "postern-broker", "first start: nothing is allowed"); err != nil {
			return fmt.Errorf("first policy: %w", err)
		}
	}
	if b.ledger, err = grants.New(grants.Config{Store: b.store, Signer: b.signer, Lease: b.cfg.Lease, Log: b.log}); err != nil {
		return err
	}
	src := sources{b}
	b.auth = authorize.New(authorize.Config{
		Sources: src, Decider: b.decide, Ledger: b.ledger, Trust: b.trust, Audit: b.audit, Metrics: b.metrics, Log: b.log,
		Online: b.onlineConnectors,
	})
	secret, err := b.ring.Newest(keys.TokenSecret)
	if err != nil {
		return err
	}
	b.tickets = tickets.New(b.signer, secret.Secret())
	return nil
}

// onlineConnectors is called while the broker serves, which is when the API is there.
func (b *Broker) onlineConnectors() []ids.ConnectorID {
	_, connectors, _ := b.api.Online()
	return connectors
}

func (b *Broker) openListeners(ctx context.Context) (err error) {
	var lc net.ListenConfig
	if b.tcp, err = lc.Listen(ctx, "tcp", b.cfg.Listen); err != nil {
		return fmt.Errorf("%w: is another broker running, or another program on this port? Choose another with listen", err)
	}
	if !b.cfg.relayOn() {
		return nil
	}
	addr := b.tcp.Addr().(*net.TCPAddr)
	if b.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port, Zone: addr.Zone}); err != nil {
		return fmt.Errorf("%w: another program has this port for UDP. Choose another with listen", err)
	}
	return nil
}

// openRelay builds the relay inside the broker and its row.
func (b *Broker) openRelay(ctx context.Context) error {
	if !b.cfg.relayOn() {
		return nil
	}
	secret, err := b.ring.Newest(keys.RelayKey)
	if err != nil {
		return err
	}
	hpke, err := ticket.ParsePrivateKey(secret.Secret())
	if err != nil {
		return fmt.Errorf("relay key: %w", err)
	}
	identityOf, err := b.serverIdentity()
	if err != nil {
		return err
	}
	hostPort := b.cfg.hostPort()
	b.relayRow, err = b.registry.EnrolRelay(ctx, registry.Relay{
		Name: "broker", Identity: identityOf, HPKE: hpke.Public().Bytes(), TCP: []string{hostPort}, UDP: []string{hostPort},
		Seen: registry.Seen{Version: b.version},
	}, time.Now())
	if err != nil {
		return fmt.Errorf("relay of this broker: %w", err)
	}
	b.relay, err = relay.New(relay.Config{
		ID: b.relayRow.ID, Key: hpke, Log: b.log, BrokerKeys: b.brokerKeys,
	})
	return err
}

// brokerKeys are the signing keys of all brokers; none when they cannot be read.
func (b *Broker) brokerKeys() seal.Keys {
	k, _, err := b.ring.SignerKeys()
	if err != nil {
		b.log.Error("signing keys not readable", "error", err)
		return seal.Keys{}
	}
	return k
}

func (b *Broker) openAPI(context.Context) error {
	cfg := controlapi.Config{
		CA: b.ca, Ring: b.ring, Identity: b.identity, Directory: b.dir, Registry: b.registry, Catalog: b.catalog,
		Enroller: b.enroller, Sessions: b.sessions, Ledger: b.ledger, Decisions: b.decide, Authorize: b.auth,
		Audit: b.audit, Tickets: b.tickets, BuiltinRelay: b.relayRow.ID, Version: b.version, Ready: b.hasOwner,
		Epoch: b.epoch.get, RevocationSeen: b.metrics.revocation, Lease: b.cfg.Lease, Log: b.log,
	}
	if b.relay != nil {
		cfg.Relay = b.relay
	}
	b.api = controlapi.New(cfg)
	b.reactor = authorize.NewReactor(authorize.ReactorConfig{
		Authorizer: b.auth, Ledger: b.ledger, Sources: sources{b}, Watch: b.watch, Reload: b.reload, Listener: b.api,
		Topics: authorize.Topics{Policy: store.TopicPolicy, Revocation: grants.TopicRevocation}, Log: b.log,
	})
	return nil
}

// repeatCuts tells the relay of this broker what it has forgotten.
func (b *Broker) repeatCuts(ctx context.Context) error { return b.api.RepeatCuts(ctx) }

// load reads what the database holds into memory.
func (b *Broker) load(ctx context.Context) error {
	v, err := b.store.Version(ctx)
	if err != nil {
		return err
	}
	b.epoch.set(v.Epoch)
	if err := b.catalog.Reload(ctx); err != nil {
		return err
	}
	return b.ledger.Load(ctx, v.Epoch, time.Now())
}

// Run serves until ctx ends: streams first learn when to come back, then the ports close.
func (b *Broker) Run(ctx context.Context) error {
	f, err := front.New(front.Config{
		Listener: b.tcp, Internal: b.internal, Public: b.publicCert(), Log: b.log,
		Control: control.NewServer(b.control()).ServeConn, Relay: b.serveRelay, Browser: b.browser(),
		Refused: b.metrics.refused.Inc,
	})
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts := []daemon.Part{
		{Name: "front", Run: func(context.Context) error { return f.Run(serving) }},
		{Name: "store", Run: b.store.Run},
		{Name: "audit", Run: b.audit.Run},
		{Name: "identity", Run: b.identity.Run},
		{Name: "decisions", Run: b.decide.Run},
		{Name: "grants", Run: b.ledger.Run},
		{Name: "reactor", Run: b.reactor.Run},
		{Name: "due", Run: b.reactor.RunDue},
		{Name: "sessions", Run: b.runSessions},
		{Name: "reverify", Run: b.runReverify},
		{Name: "presence", Run: b.runPresence},
		{Name: "drain", Run: func(ctx context.Context) error { return b.drain(ctx, stop) }},
	}
	if b.relay != nil {
		parts = append(parts, daemon.Part{Name: "relay", Run: func(context.Context) error { return b.relay.ServeUDP(serving, b.udp) }})
	}
	parts = append(parts, b.localParts()...)
	b.log.InfoContext(ctx, "broker runs", "url", b.cfg.URL, "broker", b.id)
	return errors.Join(daemon.Run(ctx, b.log, parts...), b.Close())
}

// drain says goodbye to the streams when the broker is told to end.
func (b *Broker) drain(ctx context.Context, stop func()) error {
	<-ctx.Done()
	b.api.Drain()
	t := time.NewTimer(drainTime)
	defer t.Stop()
	<-t.C
	stop()
	return nil
}

// Close releases ports and database. Safe twice.
func (b *Broker) Close() error {
	var errs []error
	if b.tcp != nil {
		errs = append(errs, ignoreClosed(b.tcp.Close()))
	}
	if b.udp != nil {
		errs = append(errs, ignoreClosed(b.udp.Close()))
	}
	if b.store != nil {
		errs = append(errs, b.store.Close())
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// URL is the broker's URL with its pin, as it is handed to clients and connectors.
func (b *Broker) URL() string {
	return control.Broker{Address: b.cfg.hostPort(), Pin: b.ca.Pin()}.String()
}

// browser serves sign-in and set-up pages.
func (b *Broker) browser() http.Handler { return b.identity.Handler() }
