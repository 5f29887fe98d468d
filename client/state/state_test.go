package state_test

import (
	"crypto/ecdsa"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/client/state"
	"github.com/postern-zt/postern/proto/ids"
)

func open(t *testing.T) (*state.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "client")
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func TestMembershipSurvives(t *testing.T) {
	s, dir := open(t)
	if _, err := s.Load(); !errors.Is(err, state.ErrNotEnrolled) {
		t.Fatalf("Load before Save = %v", err)
	}
	want := state.Membership{URL: "https://h:1/#pin=00", Device: ids.New[ids.DeviceID](), Chain: [][]byte{{1}}, CA: []byte{2}}
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	again, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Load()
	if err != nil || cmp.Diff(want, got) != "" {
		t.Fatalf("Load = %v, %s", err, cmp.Diff(want, got))
	}
}

func TestHostSurvives(t *testing.T) {
	s, _ := open(t)
	uid := uint32(1000)
	want := state.Host{Up: true, Owner: &uid, IPv4: netip.MustParsePrefix("198.18.0.0/16")}
	if err := s.SaveHost(want); err != nil {
		t.Fatal(err)
	}
	got, err := s.Host()
	if err != nil || *got.Owner != uid || got.IPv4 != want.IPv4 || !got.Up {
		t.Fatalf("Host = %+v, %v", got, err)
	}
}

func TestConnectorIsPinned(t *testing.T) {
	s, dir := open(t)
	id, key, other := ids.New[ids.ConnectorID](), ids.KeyIDOf([]byte("a")), ids.KeyIDOf([]byte("b"))
	for range 2 {
		if err := s.CheckConnector(id, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CheckConnector(id, other); !errors.Is(err, state.ErrConnectorChanged) {
		t.Errorf("another key: %v", err)
	}
	if err := s.CheckConnector(ids.New[ids.ConnectorID](), ids.KeyID{}); err == nil {
		t.Error("no key: accepted")
	}
	if err := os.WriteFile(filepath.Join(dir, "pins.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckConnector(id, key); err == nil {
		t.Error("unreadable pins: accepted")
	}
}

func TestForgetMakesANewDevice(t *testing.T) {
	s, dir := open(t)
	if err := s.Save(state.Membership{URL: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(); err != nil {
		t.Fatal(err)
	}
	again, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Load(); !errors.Is(err, state.ErrNotEnrolled) {
		t.Errorf("Load after Forget = %v", err)
	}
	if again.Key().Public().(*ecdsa.PublicKey).Equal(s.Key().Public()) {
		t.Error("the key is the old one")
	}
}
