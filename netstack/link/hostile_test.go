package link_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
)

// A client that never reads its control stream must not delay the revocation of anybody:
// the connector's one loop carries revocations out in turn.
func TestDeafClientDelaysNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, link.Limits{})
		w.handler.app(80, echo)
		deaf := w.greeted(t, newCredentials(t), frame.NewInstanceID())
		for ref := range uint64(8) {
			if code := deaf.present(ref+1, envelope("gnt_deaf", 80)); code != frame.OK {
				t.Fatal(code)
			}
		}
		honest := w.client(newCredentials(t), nil, &road{name: "a"})
		present(t, honest, "gnt_honest", 1)
		f := mustOpen(t, honest, 1, 80)
		var pings []byte
		for i := range uint64(1_000_000) {
			pings = frame.AppendPing(pings, i)
		}
		_ = deaf.ctl.SetWriteDeadline(time.Now().Add(time.Minute))
		go func() { _, _ = deaf.ctl.Write(pings) }() // ends with the line
		synctest.Wait()
		start := time.Now()
		w.server.CloseGrant("gnt_deaf", frame.Revoked)
		w.server.CloseGrant("gnt_honest", frame.Revoked)
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("two revocations took %s, want at once", took)
		}
		if _, err := f.Read(make([]byte, 1)); frame.CodeOf(err) != frame.Revoked {
			t.Errorf("the honest client saw %v, want revoked", err)
		}
	})
}
