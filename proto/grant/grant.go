package grant

import (
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

// ConstraintsVersion is the newest set of constraints that this build can enforce.
const ConstraintsVersion = 1

// maxList bounds the repeated fields of one message.
const maxList = 4096

// ErrUnsupportedConstraint says that a message asks for something this build cannot enforce.
var ErrUnsupportedConstraint = errors.New("unsupported constraint")

// PeerKind says what stands at the client end of a grant (decisions rule 7).
type PeerKind uint8

// The kinds of peers; a kind that is not in this list is refused.
const (
	PeerDevice   PeerKind = 1
	PeerWorkload PeerKind = 2
	PeerGateway  PeerKind = 3
)

// Network is the transport of a flow.
type Network uint8

// The networks of this release.
const (
	TCP Network = 1
	UDP Network = 2
)

// String returns "tcp" or "udp".
func (n Network) String() string {
	switch n {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	default:
		return "unknown"
	}
}

// Ports is one range of published ports of one network, both ends included.
type Ports struct {
	Network     Network
	First, Last uint16
}

// Contains reports whether the range covers a port.
func (p Ports) Contains(n Network, port uint16) bool {
	return p.Network == n && port >= p.First && port <= p.Last
}

// OutageMode says what happens to open flows when no statement covers them (rule 8).
type OutageMode uint8

// The outage modes. The zero value is not valid on the wire.
const (
	OutageCut      OutageMode = 1
	OutageContinue OutageMode = 2
	OutageHold     OutageMode = 3
)

// Grant is what an allow or limited decision gives: immutable, signed, bound to one
// device identity key, one app and the named connectors.
type Grant struct {
	ID          ids.GrantID
	Receipt     ids.ReceiptID
	Session     ids.SessionID
	User        ids.UserID
	PeerKind    PeerKind
	PeerKey     ids.KeyID
	App         ids.AppID
	AppName     string
	Ports       []Ports
	Verbs       []string
	Connectors  []ids.ConnectorID
	NotBefore   time.Time
	HardEnd     time.Time
	Outage      OutageMode
	OutageGrace time.Duration
	// BytesPerSecond and Flows limit one micro-tunnel; zero means no limit of its own.
	BytesPerSecond uint64
	Flows          uint32
	// OpensPerMinute limits the flows that the peer opens to the app, over all its grants;
	// zero means no limit.
	OpensPerMinute uint32
	// Idle ends the grant after that long without a byte; zero means never. The connector
	// reports what moves, the broker ends it: only the broker hears all connectors.
	Idle time.Duration
}

// Allows reports whether the grant covers a port of a network.
func (g *Grant) Allows(n Network, port uint16) bool {
	for _, p := range g.Ports {
		if p.Contains(n, port) {
			return true
		}
	}
	return false
}

// Names reports whether the grant may be used at connector c.
func (g *Grant) Names(c ids.ConnectorID) bool {
	for _, id := range g.Connectors {
		if id == c {
			return true
		}
	}
	return false
}

// Seal signs the grant.
func Seal(s *seal.Signer, g *Grant) []byte {
	return s.Seal(seal.Grant, g.encode())
}

func (g *Grant) encode() []byte {
	var w tlv.Writer
	w.PutUint(1, true, ConstraintsVersion)
	w.PutString(2, true, string(g.ID))
	w.PutString(3, true, string(g.Receipt))
	w.PutString(4, true, string(g.Session))
	w.PutString(5, true, string(g.User))
	w.PutUint(6, true, uint64(g.PeerKind))
	w.Put(7, true, g.PeerKey[:])
	w.PutString(8, true, string(g.App))
	w.PutString(9, false, g.AppName)
	for _, p := range g.Ports {
		w.Put(10, true, encodePorts(p))
	}
	for _, v := range g.Verbs {
		w.PutString(11, true, v)
	}
	for _, c := range g.Connectors {
		w.PutString(12, true, string(c))
	}
	w.PutUint(13, true, unixMilli(g.NotBefore))
	w.PutUint(14, true, unixMilli(g.HardEnd))
	w.PutUint(15, true, uint64(g.Outage))
	w.PutUint(16, true, uint64(g.OutageGrace/time.Millisecond))
	w.PutUint(17, false, g.BytesPerSecond)
	w.PutUint(18, false, uint64(g.Flows))
	w.PutUint(19, false, uint64(g.OpensPerMinute))
	w.PutUint(20, false, uint64(g.Idle/time.Millisecond))
	return w.Bytes()
}

// Open verifies and parses a sealed grant.
func Open(keys seal.Keys, envelope []byte) (*Grant, error) {
	payload, err := keys.Open(seal.Grant, envelope)
	if err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	return parse(payload)
}

// parse decodes the payload of a verified grant.
func parse(payload []byte) (*Grant, error) {
	d, err := newDecoder(payload)
	if err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	g := &Grant{}
	for d.next() {
		g.setField(d)
	}
	if err := d.err; err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	return g, g.check()
}

func (g *Grant) setField(d *decoder) {
	switch d.f.Number {
	case 1:
		d.version()
	case 2:
		g.ID = textID[ids.GrantID](d)
	case 3:
		g.Receipt = ids.ReceiptID(d.text())
	case 4:
		g.Session = textID[ids.SessionID](d)
	case 5:
		g.User = textID[ids.UserID](d)
	case 6:
		g.PeerKind = PeerKind(d.small())
	case 7:
		g.PeerKey = d.keyID()
	case 8:
		g.App = textID[ids.AppID](d)
	case 9:
		g.AppName = d.text()
	case 10:
		g.Ports = append(g.Ports, d.ports())
	case 11:
		g.Verbs = append(g.Verbs, d.text())
	case 12:
		g.Connectors = append(g.Connectors, textID[ids.ConnectorID](d))
	default:
		g.setLimit(d)
	}
}

func (g *Grant) setLimit(d *decoder) {
	switch d.f.Number {
	case 13:
		g.NotBefore = d.time()
	case 14:
		g.HardEnd = d.time()
	case 15:
		g.Outage = OutageMode(d.small())
	case 16:
		g.OutageGrace = d.duration()
	case 17:
		g.BytesPerSecond = d.uint()
	case 18:
		g.Flows = uint32(min(d.uint(), 1<<31))
	case 19:
		g.OpensPerMinute = uint32(min(d.uint(), 1<<31))
	case 20:
		g.Idle = d.duration()
	default:
		d.unknown()
	}
}

// check refuses a grant that lacks what a connector needs in order to decide.
func (g *Grant) check() error {
	switch {
	case g.ID == "" || g.Receipt == "" || g.Session == "" || g.User == "" || g.App == "":
		return fmt.Errorf("grant: %w: an id is missing", tlv.ErrBadValue)
	case g.PeerKind < PeerDevice || g.PeerKind > PeerGateway:
		return fmt.Errorf("grant: %w: peer kind %d", ErrUnsupportedConstraint, g.PeerKind)
	case g.PeerKey.IsZero():
		return fmt.Errorf("grant: %w: no peer key", tlv.ErrBadValue)
	case len(g.Ports) == 0 || len(g.Connectors) == 0 || len(g.Verbs) == 0:
		return fmt.Errorf("grant: %w: no ports, verbs or connectors", tlv.ErrBadValue)
	case g.Outage < OutageCut || g.Outage > OutageHold:
		return fmt.Errorf("grant: %w: outage mode %d", ErrUnsupportedConstraint, g.Outage)
	case g.NotBefore.IsZero() || !g.HardEnd.After(g.NotBefore):
		return fmt.Errorf("grant: %w: no period of validity", tlv.ErrBadValue)
	}
	return nil
}
