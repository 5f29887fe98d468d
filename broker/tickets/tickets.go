// Package tickets makes the relay tickets of devices and connectors (decisions rules 13
// and 14). Handles follow from the keys of both ends and a secret of the installation, so
// every broker gives the same link the same handle, also after a restart, and whoever
// revokes can name the link without having kept anything.
//
// controlapi hands tickets out, authorize names the handles to cut. A Minter is immutable
// and safe for concurrent use.
package tickets

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
)

// Life is how long a ticket is good: longer than the longest hard end and outage mode, so
// that re-attaching never needs the broker.
const Life = 48 * time.Hour

// Relay is a relay that tickets are made for.
type Relay struct {
	ID   ids.RelayID
	HPKE []byte
}

// Minter makes tickets.
type Minter struct {
	signer *seal.Signer
	secret []byte
}

// New returns a Minter; secret is the same on all brokers of the installation.
func New(signer *seal.Signer, secret []byte) *Minter {
	return &Minter{signer: signer, secret: secret}
}

// Minted is a ticket with what its holder must know beside it.
type Minted struct {
	Sealed  []byte
	Handle  ticket.Handle
	MACKey  ticket.MACKey
	Expires time.Time
}

// Device returns the ticket with which a device calls a connector at a relay.
func (m *Minter) Device(r Relay, device, connector ids.KeyID, now time.Time) (Minted, error) {
	return m.mint(r, ticket.Ticket{
		Relay: r.ID, Role: ticket.RoleClient, Handle: m.LinkHandle(r.ID, device, connector),
		Connector: m.ConnectorHandle(r.ID, connector), Holder: device,
	}, now)
}

// Connector returns the ticket with which a connector stands ready at a relay.
func (m *Minter) Connector(r Relay, connector ids.KeyID, now time.Time) (Minted, error) {
	return m.mint(r, ticket.Ticket{
		Relay: r.ID, Role: ticket.RoleConnector, Handle: m.ConnectorHandle(r.ID, connector), Holder: connector,
	}, now)
}

func (m *Minter) mint(r Relay, t ticket.Ticket, now time.Time) (Minted, error) {
	pub, err := ticket.ParsePublicKey(r.HPKE)
	if err != nil {
		return Minted{}, fmt.Errorf("ticket for relay %s: %w", r.ID, err)
	}
	t.MACKey = ticket.NewMACKey()
	// Whole seconds and never backdated: a revocation of this second voids the ticket.
	t.NotBefore = now.Truncate(time.Second)
	t.Expires = t.NotBefore.Add(Life)
	sealed, err := ticket.Seal(pub, m.signer, t)
	if err != nil {
		return Minted{}, fmt.Errorf("ticket for relay %s: %w", r.ID, err)
	}
	return Minted{Sealed: sealed, Handle: t.Handle, MACKey: t.MACKey, Expires: t.Expires}, nil
}

// LinkHandle names the link of a device and a connector at a relay.
func (m *Minter) LinkHandle(r ids.RelayID, device, connector ids.KeyID) ticket.Handle {
	return m.handle("link", string(r), device[:], connector[:])
}

// ConnectorHandle names a connector at a relay.
func (m *Minter) ConnectorHandle(r ids.RelayID, connector ids.KeyID) ticket.Handle {
	return m.handle("connector", string(r), connector[:], nil)
}

// handle derives 56 bits that nobody can guess and that are never zero.
func (m *Minter) handle(kind, relay string, a, b []byte) ticket.Handle {
	for round := byte(0); ; round++ {
		h := hmac.New(sha256.New, m.secret)
		fmt.Fprintf(h, "postern handle/1\x00%s\x00%s\x00%d\x00", kind, relay, round)
		h.Write(a)
		h.Write(b)
		v := ticket.Handle(binary.BigEndian.Uint64(h.Sum(nil)) >> 8)
		if v.Valid() {
			return v
		}
	}
}
