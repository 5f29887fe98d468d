package scenario

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/netstack/carrier"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

const (
	// scanned is how many ports a program on a device tries.
	scanned = 10_000
	// askings is how often a device without the product's client asks the broker itself.
	askings = 2_000
)

// TestFaultDeniedScan: 10,000 ports of an app that is denied are tried through the product's
// client, which asks the broker once; a device that asks the broker each time is bounded, and
// what is decided makes one record and a count of the rest. The app is not touched, and somebody else gets in meanwhile.
func TestFaultDeniedScan(t *testing.T) {
	w, s, bob, wiki := wikiWorld(t)
	s.start()
	s.await()
	payroll := echo(t)
	w.publish("payroll", "berlin", payroll.target())
	mallory := w.device("root", "mallory-laptop")
	w.laptopState("root", w.broker.URL())
	c := w.laptop("root", w.broker.URL(), func(*client.Config) {})

	var opened, decided atomic.Int64
	half := make(chan struct{})
	var scan sync.WaitGroup
	scan.Go(func() {
		each(askings, func(i int) {
			if i == askings/2 {
				close(half)
			}
			resp, err := mallory.api.Authorize(t.Context(), connect.NewRequest(&controlv1.AuthorizeRequest{AppName: "payroll"}))
			switch {
			case connect.CodeOf(err) == connect.CodeResourceExhausted: // asks too often: not even decided
			case err != nil || len(resp.Msg.Grant) > 0:
				t.Errorf("authorize: %v, %v", resp, err)
			default:
				decided.Add(1)
			}
		})
	})
	<-half
	reachable(w, bob, carrier.TLS, wiki)
	scan.Wait()
	each(scanned, func(i int) {
		if f, err := c.OpenTCP(t.Context(), "payroll", uint16(i+1)); err == nil {
			opened.Add(1)
			f.Close()
		}
	})
	if opened.Load() != 0 || payroll.hits() != 0 {
		t.Errorf("%d ports opened, the app saw %d connections", opened.Load(), payroll.hits())
	}
	w.stopBroker() // a count is written when its minute is over, or at the end
	w.startBroker()
	if n := decided.Load(); n == 0 || n == askings {
		t.Errorf("%d of %d questions were decided: the device was not bounded", n, askings)
	}
	w.countedDenials(mallory.id, uint64(decided.Load()), true)
	w.countedDenials(string(c.Status().Device), 8, false) // as many as asked at the same moment
}

// each calls try n times, several at a time.
func each(n int64, try func(i int)) {
	var next atomic.Int64
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				try(int(i))
			}
		})
	}
	work.Wait()
}

// countedDenials checks that the denials of a device stand in few records: exactly limit of
// them, or no more than limit.
func (w *world) countedDenials(device string, limit uint64, exactly bool) {
	w.t.Helper()
	resp, err := w.admin.audit.Search(w.ctx(), connect.NewRequest(&adminv1.SearchRequest{Kind: "denied", Device: device}))
	records := must(w.t, resp, err).Records
	var count uint64
	for _, r := range records {
		var rec chain.Record
		if err := json.Unmarshal([]byte(r.Json), &rec); err != nil {
			w.t.Fatal(err)
		}
		count += max(1, rec.Count)
	}
	if len(records) == 0 || len(records) > 4 || count > limit || exactly && count != limit {
		w.t.Errorf("%d denials in %d records, want %d in one for the first and one for each minute", count, len(records), limit)
	}
	w.t.Logf("%d denials in %d records", count, len(records))
}
