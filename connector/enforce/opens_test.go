package enforce_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/netstack/peer"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// rated presents a grant of a device for two opens a minute.
func (w *world) rated(p peer.Identity, edit func(*grant.Grant)) link.FlowRecord {
	w.t.Helper()
	_, sample := w.present()
	g := *sample
	g.ID, g.PeerKey, g.OpensPerMinute = ids.New[ids.GrantID](), p.KeyID, 2
	edit(&g)
	mt, code := w.Present(w.t.Context(), p, hello, grant.Seal(broker, &g))
	if code != frame.OK {
		w.t.Fatalf("Present = %v", code)
	}
	rec := record(mt, 80)
	rec.Peer = p
	return rec
}

func asIs(*grant.Grant) {}

// opens tries a flow as often as there are codes, and dials those that may.
func (w *world) opens(rec link.FlowRecord, want ...frame.Code) {
	w.t.Helper()
	for i, code := range want {
		_, got := w.FlowOpened(w.t.Context(), rec)
		if got != code {
			w.t.Errorf("open %d: %v, want %v", i+1, got, code)
		}
	}
}

// TestOpensPerMinute: the third open of a minute is refused with its own reason before any
// record, over all grants of the device for the app; others are not hurt.
func TestOpensPerMinute(t *testing.T) {
	w := newWorld(t)
	rec := w.rated(device, asIs)
	w.opens(rec, frame.OK, frame.OK, frame.TooManyOpens, frame.TooManyOpens)
	w.opens(w.rated(device, asIs), frame.TooManyOpens) // asking anew gives no new opens
	w.opens(w.rated(peer.Identity{KeyID: ids.KeyIDOf([]byte("another"))}, asIs), frame.OK)
	w.opens(w.rated(device, func(g *grant.Grant) { g.OpensPerMinute = 0 }), frame.OK, frame.OK, frame.OK)
	if got := strings.Join(w.events, " "); strings.Count(got, "flow_open") != 6 || strings.Contains(got, "refused") {
		t.Errorf("records: %s", got)
	}
	w.now.Boot += time.Minute
	w.now.Wall = w.now.Wall.Add(59 * time.Second) // the wall clock does not count
	w.statement()
	w.opens(rec, frame.OK, frame.OK, frame.TooManyOpens)
}

// TestRefusedOpensAreOneRecord: a minute of refusals is one counted record.
func TestRefusedOpensAreOneRecord(t *testing.T) {
	w := newWorld(t)
	w.opens(w.rated(device, asIs), frame.OK, frame.OK, frame.TooManyOpens, frame.TooManyOpens, frame.TooManyOpens)
	before := len(w.records)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is not written yet is written at the end
	if err := w.RunRefusals(ctx); err != nil {
		t.Fatal(err)
	}
	if len(w.records) != before+1 {
		t.Fatalf("records: %+v", w.records[before:])
	}
	last := w.records[before]
	if last.Kind != chain.FlowRefused || last.Count != 3 || last.Details["limit"] != "2" {
		t.Errorf("record: %+v", last)
	}
	if d := cmp.Diff([]string{"too_many_opens"}, last.Reasons); d != "" {
		t.Error(d)
	}
	w.opens(w.rated(device, asIs), frame.OK)
	if err := w.RunRefusals(ctx); err != nil || len(w.records) != before+2 {
		t.Errorf("a minute without refusals left a record: %v, %+v", err, w.records[before+1:])
	}
}

// TestActiveNamesWhatMoves: only grants with an idle limit on which bytes pass are named,
// once, and again when nobody heard.
func TestActiveNamesWhatMoves(t *testing.T) {
	w := newWorld(t)
	idle := w.rated(device, func(g *grant.Grant) { g.Idle = time.Hour })
	endless := w.rated(device, asIs)
	var conns []net.Conn
	for _, rec := range []link.FlowRecord{idle, endless} {
		w.opens(rec, frame.OK)
		conn, code := w.Enforcer.Dial(t.Context(), rec.Tunnel, rec.FlowOpen)
		if code != frame.OK {
			t.Fatal(code)
		}
		conns = append(conns, conn)
	}
	id := []ids.GrantID{idle.Tunnel.Grant}
	if got := w.Active(); !slices.Equal(got, id) {
		t.Errorf("after the dial: %v, want %v", got, id)
	}
	if got := w.Active(); len(got) != 0 {
		t.Errorf("nothing moved: %v", got)
	}
	for _, conn := range conns {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	got := w.Active()
	if !slices.Equal(got, id) {
		t.Errorf("after a byte: %v, want %v", got, id)
	}
	w.NotReported(got)
	if got := w.Active(); !slices.Equal(got, id) {
		t.Errorf("after a report that did not arrive: %v, want %v", got, id)
	}
}
