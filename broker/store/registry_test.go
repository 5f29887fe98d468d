package store_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

// addrs lets cmp compare addresses, whose fields are hidden.
var addrs = cmpopts.EquateComparable(netip.Addr{})

func identity(name string) registry.Identity {
	spki := []byte("public key of " + name)
	return registry.Identity{Key: ids.KeyIDOf(spki), SPKI: spki}
}

// changes returns topic and key of each change since the version.
func changes(t *testing.T, s *store.Store, after store.Version) []string {
	t.Helper()
	for batch, err := range s.Watch(t.Context(), after.Seq) {
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range batch.Changes {
			out = append(out, c.Topic+" "+c.Key)
		}
		return out
	}
	return nil
}

func version(t *testing.T, s *store.Store) store.Version {
	t.Helper()
	v, err := s.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDeviceLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		reg := registry.New(s)
		user := ids.New[ids.UserID]()
		d, err := reg.EnrolDevice(t.Context(), registry.Device{
			User: user, Name: "ann's\x00 laptop", OS: "linux", Hardware: true, Identity: identity("laptop"),
		}, day)
		if err != nil || d.Name != "ann's laptop" {
			t.Fatalf("EnrolDevice = %q, %v", d.Name, err)
		}
		again, err := reg.EnrolDevice(t.Context(), registry.Device{User: user, Identity: identity("laptop")}, day)
		if err != nil || again.ID != d.ID {
			t.Errorf("the same key again = %s, %v, want %s", again.ID, err, d.ID)
		}
		if err := reg.RenewDevice(t.Context(), d.ID, "5f", day.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if err := reg.SeeDevice(t.Context(), d.ID, netip.MustParseAddr("::ffff:192.0.2.7"), "1.2", day.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		d.Identity.Serial, d.Identity.NotAfter = "5f", day.Add(time.Hour)
		d.Seen.Last, d.Seen.Address, d.Seen.Version = day.Add(time.Minute), netip.MustParseAddr("192.0.2.7"), "1.2"
		got, err := registry.New(open()).DeviceByKey(t.Context(), d.Identity.Key)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, got, addrs); diff != "" {
			t.Errorf("device after a restart (-want +got):\n%s", diff)
		}
		checkBlocking(t, s, reg, d)
	})
}

// checkBlocking blocks, unblocks and removes a device.
func checkBlocking(t *testing.T, s *store.Store, reg *registry.Registry, d registry.Device) {
	t.Helper()
	before := version(t, s)
	if got, err := reg.SetDeviceState(t.Context(), d.ID, registry.Blocked); err != nil || !errors.Is(got.Usable(), registry.ErrBlocked) {
		t.Errorf("blocked device: %v, %v", err, got.Usable())
	}
	if diff := cmp.Diff([]string{"device " + string(d.ID)}, changes(t, s, before)); diff != "" {
		t.Errorf("change events: %s", diff)
	}
	if _, err := reg.EnrolDevice(t.Context(), registry.Device{User: d.User, Identity: d.Identity}, day); !errors.Is(err, registry.ErrBlocked) {
		t.Errorf("enrolling a blocked key = %v, want ErrBlocked", err)
	}
	if got, err := reg.SetDeviceState(t.Context(), d.ID, registry.Active); err != nil || got.Usable() != nil {
		t.Errorf("unblocked device: %v, %v", err, got.Usable())
	}
	if _, err := reg.SetDeviceState(t.Context(), d.ID, registry.Removed); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.SetDeviceState(t.Context(), d.ID, registry.Active); !errors.Is(err, registry.ErrRemoved) {
		t.Errorf("unblocking a removed device = %v, want ErrRemoved", err)
	}
	if _, err := reg.EnrolDevice(t.Context(), registry.Device{User: d.User, Identity: d.Identity}, day); !errors.Is(err, registry.ErrRemoved) {
		t.Errorf("enrolling a removed key = %v, want ErrRemoved", err)
	}
	if _, err := reg.SetDeviceState(t.Context(), d.ID, "sleeping"); err == nil {
		t.Error("an unknown state was accepted")
	}
}

func TestTwoLoginsEnrolOneDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		reg := registry.New(open())
		got := make([]ids.DeviceID, 8)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range got {
			wg.Go(func() {
				<-start
				d, err := reg.EnrolDevice(t.Context(), registry.Device{User: "usr_x", Identity: identity("a")}, day)
				if err != nil {
					t.Errorf("EnrolDevice: %v", err)
				}
				got[i] = d.ID
			})
		}
		close(start)
		wg.Wait()
		slices.Sort(got)
		if all := slices.Compact(got); len(all) != 1 {
			t.Errorf("devices %v, want one", all)
		}
	})
}

func TestSeeingIsNoChange(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		reg := registry.New(s)
		d, err := reg.EnrolDevice(t.Context(), registry.Device{User: "usr_x", Identity: identity("a")}, day)
		if err != nil {
			t.Fatal(err)
		}
		before := version(t, s)
		if err := reg.SeeDevice(t.Context(), d.ID, netip.Addr{}, "1", day); err != nil {
			t.Fatal(err)
		}
		if after := version(t, s); after != before {
			t.Errorf("version went from %v to %v", before, after)
		}
		if err := reg.SeeDevice(t.Context(), "dev_unknown", netip.Addr{}, "1", day); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("seeing an unknown device = %v, want ErrNotFound", err)
		}
	})
}

func TestFactsKeepTheNewest(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		reg := registry.New(open())
		d, err := reg.EnrolDevice(t.Context(), registry.Device{User: "usr_x", Identity: identity("a")}, day)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := reg.Facts(t.Context(), d.ID); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("facts before a report = %v, want ErrNotFound", err)
		}
		for _, f := range []registry.DeviceFacts{
			{Device: d.ID, ObservedAt: day.Add(time.Minute), Facts: json.RawMessage(`{"new":1}`)},
			{Device: d.ID, ObservedAt: day, Facts: json.RawMessage(`{"old":1}`)},
		} {
			if err := reg.PutFacts(t.Context(), f); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := reg.Facts(t.Context(), d.ID); err != nil || string(got.Facts) != `{"new":1}` {
			t.Errorf("facts = %s, %v, want the newest", got.Facts, err)
		}
		if err := reg.PutFacts(t.Context(), registry.DeviceFacts{Device: d.ID, Facts: json.RawMessage(`{`)}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("damaged JSON = %v, want ErrInvalid", err)
		}
	})
}

func TestConnectorLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		reg, site := registry.New(s), mustSite(t, newCatalog(t, s), "berlin").ID
		enrol := func(key, name string, site ids.SiteID) (registry.Connector, error) {
			return reg.EnrolConnector(t.Context(), registry.Connector{Site: site, Name: name, MayPublish: true, Identity: identity(key)}, day)
		}
		c, err := enrol("one", "host", site)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := enrol("two", "host", site); err != nil || two.Name != "host-2" {
			t.Errorf("second connector of a name = %q, %v, want host-2", two.Name, err)
		}
		if _, err := enrol("one", "host", site); !errors.Is(err, registry.ErrExists) {
			t.Errorf("known key = %v, want ErrExists", err)
		}
		if _, err := enrol("three", "host", ids.New[ids.SiteID]()); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("unknown site = %v, want ErrNotFound", err)
		}
		rep := registry.ConnectorReport{Health: json.RawMessage(`{"ok":true}`), Assignment: 3, Applied: 9}
		if err := reg.SeeConnector(t.Context(), c.ID, netip.Addr{}, "1", rep, day); err != nil {
			t.Fatal(err)
		}
		if err := reg.SeeConnector(t.Context(), c.ID, netip.Addr{}, "1", registry.ConnectorReport{}, day); err != nil {
			t.Fatal(err)
		}
		c.Health, c.Assignment, c.Applied, c.Seen.Version = rep.Health, 3, 9, "1"
		got, err := registry.New(open()).Connector(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, got, addrs); diff != "" {
			t.Errorf("connector after a restart (-want +got):\n%s", diff)
		}
	})
}

func TestRelayLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		reg := registry.New(open())
		r := registry.Relay{Name: "edge", Identity: identity("r"), HPKE: []byte{1}, TCP: []string{"r.example:443"}, UDP: []string{"r.example:443"}}
		first, err := reg.EnrolRelay(t.Context(), r, day)
		if err != nil {
			t.Fatal(err)
		}
		r.TCP, r.HPKE = []string{"r.example:8443"}, []byte{2}
		moved, err := reg.EnrolRelay(t.Context(), r, day)
		if err != nil || moved.ID != first.ID {
			t.Fatalf("the same relay again = %s, %v, want %s", moved.ID, err, first.ID)
		}
		got, err := registry.New(open()).RelayByKey(t.Context(), r.Identity.Key)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(moved, got, addrs); diff != "" {
			t.Errorf("relay after a restart (-want +got):\n%s", diff)
		}
		if _, err := reg.SetRelayState(t.Context(), first.ID, registry.Blocked); err != nil {
			t.Fatal(err)
		}
		if _, err := reg.EnrolRelay(t.Context(), r, day); !errors.Is(err, registry.ErrBlocked) {
			t.Errorf("a blocked relay came back: %v", err)
		}
	})
}
