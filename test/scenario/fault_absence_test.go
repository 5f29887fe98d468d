package scenario

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/connector"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/ids"
)

// authority opens the certificate authority of a broker that stands still.
func (w *world) authority() *keys.CA {
	w.t.Helper()
	cfg := w.cfg
	if err := cfg.Validate(); err != nil { // it fills in where things are
		w.t.Fatal(err)
	}
	s, err := store.Open(w.ctx(), store.Config{DSN: cfg.Database, Version: version, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	ca, err := openCA(w.ctx(), s, cfg.KEKFile)
	if err != nil {
		w.t.Fatal(err)
	}
	return ca
}

func openCA(ctx context.Context, s *store.Store, kekFile string) (*keys.CA, error) {
	kek, err := keys.LoadKEK(kekFile)
	if err != nil {
		return nil, err
	}
	b, berr := s.MetaOnce(ctx, "broker", "")
	org, oerr := s.MetaOnce(ctx, "org", "")
	if err := errors.Join(berr, oerr); err != nil {
		return nil, err
	}
	ring, err := keys.New(keys.Config{Store: s, KEK: kek, Broker: ids.BrokerID(b), Org: ids.OrgID(org)})
	if err != nil {
		return nil, err
	}
	if err := ring.Load(ctx); err != nil {
		return nil, err
	}
	return ring.CA()
}

// expire replaces a connector's certificate by one that is over, as after a long absence of
// its broker.
func (s *site) expire(ca *keys.CA) {
	s.w.t.Helper()
	m, err := s.store.Load()
	if err != nil {
		s.w.t.Fatal(err)
	}
	m.Chain[0] = over(s.w.t, func() ([]byte, error) {
		return ca.IssueConnector(s.store.Key().Public(), m.Connector, -time.Minute)
	})
	if err := s.store.Save(m); err != nil {
		s.w.t.Fatal(err)
	}
}

func over(t testing.TB, issue func() ([]byte, error)) []byte {
	t.Helper()
	der, err := issue()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// expireLaptop does the same to a laptop, and returns its client, which is not running.
func (w *world) expireLaptop(user string, ca *keys.CA) *client.Client {
	w.t.Helper()
	c, err := client.New(w.laptopConfig(user))
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := c.Store().Load()
	if err != nil {
		w.t.Fatal(err)
	}
	m.Chain[0] = over(w.t, func() ([]byte, error) {
		return ca.IssueDevice(c.Store().Key().Public(), m.Device, -time.Minute)
	})
	if err := c.Store().Save(m); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// TestFaultBrokerAway: after an absence of the broker that outlasted every certificate,
// connectors and devices come back alone; those that were blocked before do not, and say
// that they are.
func TestFaultBrokerAway(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann", "bob")
	berlin, munich := w.joined("berlin-1", w.site("berlin")), w.joined("munich-1", w.site("munich"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	w.allow("bob", "wiki")
	w.laptopState("ann", w.broker.URL())
	w.laptopState("bob", w.broker.URL())
	w.blockBoth("bob-laptop", "munich-1")
	w.stopBroker()
	ca := w.authority()
	berlin.expire(ca)
	munich.expire(ca)
	ann, bob := w.expireLaptop("ann", ca), w.expireLaptop("bob", ca)
	w.startBroker()
	berlin.startWith(func(*connector.Config) {})
	munich.startWith(func(*connector.Config) {})
	start(t, "ann's client", ann.Run)
	start(t, "bob's client", bob.Run)

	berlin.await()
	if err := ann.AwaitLive(w.ctx()); err != nil {
		t.Fatalf("ann's laptop does not come back: %v", err)
	}
	reaches(t, ann, "wiki", wiki)

	eventually(t, "munich-1 says why it is out", func() bool {
		return strings.Contains(munich.conn.Uplink().Problem, "does not accept") || strings.Contains(munich.conn.Uplink().Problem, "blocked")
	})
	eventually(t, "bob's laptop says why it is out", func() bool {
		problem := bob.Status().Uplink.Problem
		return strings.Contains(problem, "does not accept") || strings.Contains(problem, "blocked")
	})
	if munich.conn.Live() {
		t.Error("the blocked connector serves")
	}
	hits := wiki.hits()
	if _, err := bob.OpenTCP(w.ctx(), "wiki", wiki.port()); err == nil || wiki.hits() != hits {
		t.Errorf("the blocked laptop opened the app: %v", err)
	}
}

// blockBoth blocks a device and a connector by their names.
func (w *world) blockBoth(device, connector string) {
	w.t.Helper()
	list, err := w.admin.devices.ListDevices(w.ctx(), connect.NewRequest(&adminv1.ListDevicesRequest{}))
	for _, d := range must(w.t, list, err).Devices {
		if d.Name == device {
			resp, err := w.admin.devices.BlockDevice(w.ctx(), connect.NewRequest(&adminv1.DeviceRef{Device: d.Id}))
			must(w.t, resp, err)
		}
	}
	resp, err := w.admin.connectors.BlockConnector(w.ctx(), connect.NewRequest(&adminv1.ConnectorRef{Connector: connector}))
	must(w.t, resp, err)
}
