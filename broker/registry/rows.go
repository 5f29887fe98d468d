package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postern-zt/postern/proto/ids"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrNotFound: no row with this id or key.
	ErrNotFound = errors.New("not found in the registry")
	// ErrExists: the key or the name is taken.
	ErrExists = errors.New("already in the registry")
	// ErrBlocked: the row is blocked, or in a state this program does not know.
	ErrBlocked = errors.New("blocked in the registry")
	// ErrRemoved: the row was removed, which is final.
	ErrRemoved = errors.New("removed from the registry")
	// ErrInvalid: a value breaks a rule.
	ErrInvalid = errors.New("invalid value")
)

// State is whether a row may connect. The zero value and unknown values may not.
type State string

// The states.
const (
	Active  State = "active"
	Blocked State = "blocked"
	Removed State = "removed"
)

// Limits on what machines say about themselves.
const (
	maxName    = 128
	maxVersion = 64
	maxSPKI    = 1024
	maxJSON    = 64 << 10
)

// Identity is the key of a machine and its present certificate.
type Identity struct {
	Key ids.KeyID
	// SPKI is the DER SubjectPublicKeyInfo that Key names.
	SPKI []byte
	// Serial and NotAfter are those of the certificate issued last.
	Serial   string
	NotAfter time.Time
}

// Seen is what the broker noticed of a machine.
type Seen struct {
	First   time.Time
	Last    time.Time
	Address netip.Addr
	Version string
}

// Device is a machine of an employee, or one user of it without the daemon.
type Device struct {
	ID   ids.DeviceID
	User ids.UserID // who enrolled it
	Name string
	OS   string
	// Hardware says that the key is held by hardware; a software key cannot reach level 3.
	Hardware bool
	State    State
	Identity Identity
	Seen     Seen
}

// DeviceFacts are the facts that a device reported last, as JSON of broker/trust.
type DeviceFacts struct {
	Device     ids.DeviceID
	ObservedAt time.Time
	Facts      json.RawMessage
}

// Connector is a process at a site that dials apps there.
type Connector struct {
	ID         ids.ConnectorID
	Site       ids.SiteID
	Name       string
	State      State
	Identity   Identity
	Seen       Seen
	MayPublish bool
	// Health is the last health report, JSON, nil before the first.
	Health json.RawMessage
	// Assignment is the version that the connector applied last, Applied the revocation
	// sequence it acknowledged last.
	Assignment uint64
	Applied    uint64
}

// Relay forwards datagrams and streams between devices and connectors.
type Relay struct {
	ID       ids.RelayID
	Name     string
	State    State
	Identity Identity
	Seen     Seen
	// HPKE is the public key that tickets are sealed to.
	HPKE []byte
	// TCP and UDP are the host:port addresses that clients and connectors use.
	TCP []string
	UDP []string
}

// usable turns a state into the error of a machine that connects.
func (s State) usable(what string) error {
	switch s {
	case Active:
		return nil
	case Removed:
		return fmt.Errorf("%s: %w", what, ErrRemoved)
	default:
		return fmt.Errorf("%s: %w", what, ErrBlocked)
	}
}

// Usable returns nil if the device may connect, else ErrBlocked or ErrRemoved.
func (d Device) Usable() error { return d.State.usable("device " + string(d.ID)) }

// Usable returns nil if the connector may connect, else ErrBlocked or ErrRemoved.
func (c Connector) Usable() error { return c.State.usable("connector " + string(c.ID)) }

// Usable returns nil if the relay may connect, else ErrBlocked or ErrRemoved.
func (r Relay) Usable() error { return r.State.usable("relay " + string(r.ID)) }

// check refuses an identity whose parts do not belong together.
func (i Identity) check() error {
	if len(i.SPKI) == 0 || len(i.SPKI) > maxSPKI {
		return fmt.Errorf("%w: public key of %d bytes", ErrInvalid, len(i.SPKI))
	}
	if i.Key != ids.KeyIDOf(i.SPKI) {
		return fmt.Errorf("%w: key id and public key differ", ErrInvalid)
	}
	return nil
}

// cleanText cuts what a machine says about itself to a printable short text.
func cleanText(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, s)
	for len(s) > most {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return strings.TrimSpace(s)
}
