package registry_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

var day = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)

// The rules that need rows are tested with the real engines in broker/store; one holds a
// single device, for the rules about values.
type one struct {
	registry.Store
	d registry.Device
}

func (o *one) DeviceByKey(context.Context, ids.KeyID) (registry.Device, error) {
	return registry.Device{}, registry.ErrNotFound
}

func (o *one) CreateDevice(_ context.Context, d registry.Device) error {
	o.d = d
	return nil
}

func (o *one) ChangeDevice(_ context.Context, _ ids.DeviceID, change func(*registry.Device) error) (registry.Device, error) {
	err := change(&o.d)
	return o.d, err
}

func TestUsable(t *testing.T) {
	for state, want := range map[registry.State]error{
		registry.Active: nil, registry.Blocked: registry.ErrBlocked, registry.Removed: registry.ErrRemoved,
		"": registry.ErrBlocked, "ACTIVE": registry.ErrBlocked, "new": registry.ErrBlocked,
	} {
		errs := []error{registry.Device{State: state}.Usable(), registry.Connector{State: state}.Usable(), registry.Relay{State: state}.Usable()}
		for _, err := range errs {
			if !errors.Is(err, want) {
				t.Errorf("state %q: %v, want %v", state, err, want)
			}
		}
	}
}

func TestMoves(t *testing.T) {
	states := []registry.State{registry.Active, registry.Blocked, registry.Removed}
	for _, from := range states {
		for _, to := range append(states, "", "other") {
			store := &one{d: registry.Device{State: from}}
			_, err := registry.New(store).SetDeviceState(t.Context(), "d", to)
			ok := to != "" && to != "other" && (from != registry.Removed || to == registry.Removed)
			if (err == nil) != ok || (!ok && store.d.State != from) {
				t.Errorf("%s -> %q: %v, now %s", from, to, err, store.d.State)
			}
		}
	}
}

func TestEnrolChecksTheKey(t *testing.T) {
	spki := []byte("key")
	for name, id := range map[string]registry.Identity{
		"no key":      {Key: ids.KeyIDOf(nil)},
		"other key":   {Key: ids.KeyIDOf([]byte("other")), SPKI: spki},
		"huge key":    {Key: ids.KeyIDOf(make([]byte, 5000)), SPKI: make([]byte, 5000)},
		"no key name": {SPKI: spki},
	} {
		if _, err := registry.New(&one{}).EnrolDevice(t.Context(), registry.Device{Identity: id}, day); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	good := registry.Device{
		Name: strings.Repeat("ü", 200) + "\x1b[31m", State: registry.Removed,
		Identity: registry.Identity{Key: ids.KeyIDOf(spki), SPKI: spki},
	}
	d, err := registry.New(&one{}).EnrolDevice(t.Context(), good, day)
	if err != nil || d.State != registry.Active {
		t.Fatalf("EnrolDevice = %s, %v", d.State, err)
	}
	if len(d.Name) > 128 || !utf8.ValidString(d.Name) || strings.ContainsRune(d.Name, 0x1b) {
		t.Errorf("name kept as %q", d.Name)
	}
}
