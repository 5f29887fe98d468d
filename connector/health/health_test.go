package health_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/connector/health"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

var (
	wiki    = ids.AppID("app_" + strings.Repeat("1", 26))
	payroll = ids.AppID("app_" + strings.Repeat("2", 26))
)

// TestApps: an app that nobody has used is not "ok", the newest dial counts, and what
// leaves the assignment is forgotten.
func TestApps(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_000)
	w := health.New(func() time.Time { return at })
	both := []grant.App{{ID: payroll}, {ID: wiki}}
	w.Dialled(wiki, frame.OK, time.Millisecond)
	got := w.Apps(both)
	if len(got) != 2 || got[0].AppId != string(wiki) || got[0].State != health.OK || got[0].CheckedMs != at.UnixMilli() ||
		got[1].State != health.NotProbed || got[1].CheckedMs != 0 {
		t.Errorf("Apps = %v", got)
	}
	w.Dialled(wiki, frame.Refused, 0)
	if got := w.Apps(both); got[0].State != health.Failing || got[0].Code != frame.Refused.String() {
		t.Errorf("after a refusal: %v", got[0])
	}
	w.Apps([]grant.App{{ID: payroll}})
	if got := w.Apps(both); got[0].State != health.NotProbed {
		t.Errorf("after it left the assignment: %v", got[0])
	}
}

// TestRunGoesOn: a report that is not delivered is replaced by the next.
func TestRunGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var sent int
		var wg sync.WaitGroup
		wg.Go(func() {
			err := health.Run(ctx, func() *controlv1.HealthRequest { return &controlv1.HealthRequest{} },
				func(context.Context, *controlv1.HealthRequest) error { sent++; return errors.New("away") }, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		})
		wg.Wait()
		if sent < 4 || sent > 6 {
			t.Errorf("%d reports in a minute", sent)
		}
	})
}
