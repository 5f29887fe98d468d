package scenario

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client/uplink"
	"github.com/postern-zt/postern/netstack/control"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

// TestFaultClientClock: before anybody signs in, the client compares its clock with the
// broker's: minutes are borne, an hour is a clear error.
func TestFaultClientClock(t *testing.T) {
	w := newWorld(t)
	for name, off := range map[string]time.Duration{"right": 0, "4 minutes ahead": 4 * time.Minute, "4 minutes behind": -4 * time.Minute} {
		if err := w.greet(off); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, off := range map[string]time.Duration{"1 hour ahead": time.Hour, "1 hour behind": -time.Hour} {
		says(t, name, w.greet(off), "clock of this machine", "set")
	}
}

// greet says hello to the broker as the client does before a sign-in, with clocks that are
// off by this much.
func (w *world) greet(off time.Duration) error {
	w.t.Helper()
	now := func() time.Time { return time.Now().Add(off) }
	at := w.where()
	hc := control.NewClient(control.ClientConfig{Broker: at, Now: now})
	defer hc.CloseIdleConnections()
	hello, err := controlv1connect.NewEnrollServiceClient(hc, at.BaseURL()).Hello(w.ctx(), connect.NewRequest(&controlv1.HelloRequest{Role: "device", Version: version}))
	if err != nil {
		return err
	}
	return uplink.CheckClock(uplink.Offset(now(), hello.Msg.TimeMs))
}
