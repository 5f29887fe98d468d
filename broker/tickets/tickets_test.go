package tickets_test

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/tickets"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

func TestMintedTicketsOpenAtTheirRelayOnly(t *testing.T) {
	signer := seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)))
	key, err := ticket.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	relay := tickets.Relay{ID: ids.New[ids.RelayID](), HPKE: key.Public().Bytes()}
	device, connector := ids.KeyIDOf([]byte("d")), ids.KeyIDOf([]byte("c"))
	m, now := tickets.New(signer, []byte("secret")), time.Now()
	minted, err := m.Device(relay, device, connector, now)
	if err != nil {
		t.Fatal(err)
	}
	keys := seal.NewKeys(signer.Public())
	got, err := ticket.Open(key, keys, relay.ID, minted.Sealed, now)
	if err != nil || got.Handle != minted.Handle || got.MACKey != minted.MACKey || got.Connector != m.ConnectorHandle(relay.ID, connector) || got.Holder != device {
		t.Fatalf("Open = %+v, %v", got, err)
	}
	if _, err := ticket.Open(key, keys, ids.New[ids.RelayID](), minted.Sealed, now); err == nil {
		t.Error("another relay opened it")
	}
	if _, err := ticket.Open(key, keys, relay.ID, minted.Sealed, now.Add(tickets.Life+time.Hour)); err == nil {
		t.Error("an expired ticket opened")
	}
	if _, err := m.Device(tickets.Relay{ID: relay.ID, HPKE: []byte{1}}, device, connector, now); err == nil {
		t.Error("a relay without a key got a ticket")
	}
}

func TestHandlesAreStableAndDistinct(t *testing.T) {
	a, b := tickets.New(nil, []byte("secret")), tickets.New(nil, []byte("other"))
	r1, r2 := ids.New[ids.RelayID](), ids.New[ids.RelayID]()
	d1, d2, c := ids.KeyIDOf([]byte("1")), ids.KeyIDOf([]byte("2")), ids.KeyIDOf([]byte("c"))
	seen := map[ticket.Handle]bool{}
	for _, h := range []ticket.Handle{
		a.LinkHandle(r1, d1, c), a.LinkHandle(r1, d2, c), a.LinkHandle(r2, d1, c), b.LinkHandle(r1, d1, c),
		a.ConnectorHandle(r1, c), a.ConnectorHandle(r2, c), a.LinkHandle(r1, c, d1),
	} {
		if seen[h] || !h.Valid() {
			t.Errorf("handle %s is repeated or invalid", h)
		}
		seen[h] = true
	}
	if a.LinkHandle(r1, d1, c) != tickets.New(nil, []byte("secret")).LinkHandle(r1, d1, c) {
		t.Error("the handle of a link changed")
	}
}
