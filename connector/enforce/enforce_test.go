package enforce_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector/enforce"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

var (
	broker = seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)))
	self   = ids.ConnectorID("con_" + strings.Repeat("1", 26))
	wiki   = ids.New[ids.AppID]()
	device = peer.Identity{KeyID: ids.KeyIDOf([]byte("device"))}
	hello  = frame.NewHello(frame.NewInstanceID(), frame.KindDevice)
)

// world is an enforcer with everything around it recorded in order.
type world struct {
	*enforce.Enforcer
	t       *testing.T
	now     clock.Time
	events  []string
	recErr  error
	seq     uint64
	onDial  func()
	records []chain.Event
}

func (w *world) Append(e chain.Event) error {
	if w.recErr != nil {
		return w.recErr
	}
	w.events = append(w.events, string(e.Kind))
	w.records = append(w.records, e)
	return nil
}

func (w *world) Dial(context.Context, *grant.Assignment, []grant.Target, grant.Network, uint16) (net.Conn, frame.Code) {
	w.events = append(w.events, "dial")
	a, b := net.Pipe()
	w.t.Cleanup(func() { a.Close(); b.Close() })
	go func() { _, _ = io.Copy(io.Discard, b) }() // ends with the pipe
	return a, frame.OK
}

func (w *world) CloseGrant(_ ids.GrantID, code frame.Code) {
	w.events = append(w.events, "close "+code.String())
}
func (w *world) Hold(ids.GrantID)   { w.events = append(w.events, "hold") }
func (w *world) Resume(ids.GrantID) { w.events = append(w.events, "resume") }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: clock.Time{Wall: time.Unix(1_800_000_000, 0), Boot: time.Hour}}
	w.Enforcer = enforce.New(enforce.Config{
		Self: self, Dialer: w, Recorder: w, Now: func() clock.Time { return w.now }, Log: slog.New(slog.DiscardHandler),
	})
	w.SetLinks(w)
	w.Keys(seal.NewKeys(broker.Public()))
	target := grant.Target{Ports: grant.Ports{Network: grant.TCP, First: 80, Last: 80}, Host: "10.0.0.5", Base: 80}
	a := &grant.Assignment{Connector: self, Site: ids.New[ids.SiteID](), Version: 1, Apps: []grant.App{{ID: wiki, Targets: []grant.Target{target}}}}
	if err := w.Assignment(grant.SealAssignment(broker, a)); err != nil {
		t.Fatal(err)
	}
	w.statement()
	return w
}

func (w *world) statement(revs ...grant.Revocation) {
	w.t.Helper()
	w.seq++
	st := &grant.Statement{
		Connector: self, Epoch: 1, Sequence: w.seq, Time: w.now.Wall, Until: w.now.Wall.Add(time.Minute),
		Revoked: uint64(len(revs)), Revocations: revs,
	}
	if err := w.Statement(grant.SealStatement(broker, st)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) present() (link.MicroTunnel, *grant.Grant) {
	w.t.Helper()
	g := &grant.Grant{
		ID: ids.New[ids.GrantID](), Receipt: ids.NewReceipt(), Session: ids.New[ids.SessionID](), User: ids.New[ids.UserID](),
		PeerKind: grant.PeerDevice, PeerKey: device.KeyID, App: wiki, Verbs: []string{"connect"},
		Ports: []grant.Ports{{Network: grant.TCP, First: 80, Last: 80}}, Connectors: []ids.ConnectorID{self},
		NotBefore: w.now.Wall, HardEnd: w.now.Wall.Add(time.Hour), Outage: grant.OutageCut,
	}
	mt, code := w.Present(w.t.Context(), device, hello, grant.Seal(broker, g))
	if code != frame.OK {
		w.t.Fatalf("Present = %v", code)
	}
	return mt, g
}

func record(mt link.MicroTunnel, port uint16) link.FlowRecord {
	return link.FlowRecord{FlowOpen: link.FlowOpen{Peer: device, Network: frame.TCP, Port: port, Flow: 7}, Tunnel: mt}
}

func TestRecordComesBeforeTheDial(t *testing.T) {
	w := newWorld(t)
	mt, g := w.present()
	rec := record(mt, 80)
	handle, code := w.FlowOpened(t.Context(), rec)
	if code != frame.OK {
		t.Fatal(code)
	}
	if _, code := w.Enforcer.Dial(t.Context(), mt, rec.FlowOpen); code != frame.OK {
		t.Fatal(code)
	}
	rec.Handle, rec.ToApp, rec.FromApp = handle, 10, 20
	w.FlowClosed(rec)
	if got := strings.Join(w.events, " "); got != "flow_open dial flow_close" {
		t.Errorf("order: %s", got)
	}
	last := w.records[1]
	if last.Receipt != g.Receipt || last.Details["to_app"] != "10" || last.Details["from_app"] != "20" {
		t.Errorf("close record: %+v", last)
	}
}

func TestNoRecordNoFlow(t *testing.T) {
	w := newWorld(t)
	mt, _ := w.present()
	w.recErr = errors.New("disk full")
	if _, code := w.FlowOpened(t.Context(), record(mt, 80)); code != frame.AuditUnavailable {
		t.Errorf("FlowOpened = %v", code)
	}
	if len(w.events) != 0 {
		t.Errorf("events: %v", w.events)
	}
}

func TestOutsideTheGrantNothingIsDialled(t *testing.T) {
	w := newWorld(t)
	mt, _ := w.present()
	if _, code := w.FlowOpened(t.Context(), record(mt, 81)); code != frame.PortNotGranted {
		t.Errorf("another port: %v", code)
	}
	foreign := record(mt, 80)
	foreign.Peer.KeyID = ids.KeyIDOf([]byte("another"))
	if _, code := w.FlowOpened(t.Context(), foreign); code != frame.GrantForeign {
		t.Errorf("another device: %v", code)
	}
	if _, code := w.FlowOpened(t.Context(), record(link.MicroTunnel{}, 80)); code == frame.OK {
		t.Error("a micro-tunnel without a grant opened a flow")
	}
	if len(w.events) != 0 {
		t.Errorf("events: %v", w.events)
	}
}

// TestRevocationBetweenRecordAndDial: the record is written, the dial does not happen.
func TestRevocationBetweenRecordAndDial(t *testing.T) {
	w := newWorld(t)
	mt, g := w.present()
	if _, code := w.FlowOpened(t.Context(), record(mt, 80)); code != frame.OK {
		t.Fatal(code)
	}
	w.statement(grant.Revocation{Sequence: 1, Kind: grant.TargetUser, Target: string(g.User), At: w.now.Wall})
	if _, code := w.Enforcer.Dial(t.Context(), mt, record(mt, 80).FlowOpen); code != frame.GrantUnknown {
		t.Errorf("Dial = %v", code)
	}
	if got := strings.Join(w.events, " "); got != "flow_open close revoked" {
		t.Errorf("order: %s", got)
	}
}

func TestHelloOfAnotherKindIsRefused(t *testing.T) {
	w := newWorld(t)
	_, g := w.present()
	gateway := frame.NewHello(frame.NewInstanceID(), frame.KindGateway)
	if _, code := w.Present(t.Context(), device, gateway, grant.Seal(broker, g)); code != frame.GrantForeign {
		t.Errorf("Present = %v", code)
	}
}
