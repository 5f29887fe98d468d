// Package health says how a connector is in three layers: its process, its paths to the
// relays, its apps. Apps are watched passively: every dial of a flow is a probe that costs
// nothing, and an app that nobody has used is "not_probed", never "ok".
//
// A Watch is safe for concurrent use; Run owns the reporting.
package health

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	reportEvery = 15 * time.Second
	sendTimeout = 10 * time.Second
)

// The states of an app.
const (
	OK        = "ok"
	Failing   = "failing"
	NotProbed = "not_probed"
)

// App is the passive health of one app.
type App struct {
	State   string
	Code    frame.Code
	Checked time.Time
	Took    time.Duration
}

// Watch collects dials.
type Watch struct {
	now func() time.Time

	mu   sync.Mutex // guards apps
	apps map[ids.AppID]App
}

// New returns a watch without any dial.
func New(now func() time.Time) *Watch {
	if now == nil {
		now = time.Now
	}
	return &Watch{now: now, apps: make(map[ids.AppID]App)}
}

// Dialled notes how a dial to an app ended.
func (w *Watch) Dialled(app ids.AppID, code frame.Code, took time.Duration) {
	state := OK
	if code != frame.OK {
		state = Failing
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.apps[app] = App{State: state, Code: code, Checked: w.now(), Took: took}
}

// Apps returns the health of the assigned apps, by id; it forgets the others.
func (w *Watch) Apps(assigned []grant.App) []*controlv1.AppHealth {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := w.apps
	w.apps = make(map[ids.AppID]App, len(known))
	out := make([]*controlv1.AppHealth, 0, len(assigned))
	for _, a := range assigned {
		h, ok := known[a.ID]
		if !ok {
			out = append(out, &controlv1.AppHealth{AppId: string(a.ID), State: NotProbed})
			continue
		}
		w.apps[a.ID] = h
		out = append(out, &controlv1.AppHealth{AppId: string(a.ID), State: h.State, Code: h.Code.String(), CheckedMs: h.Checked.UnixMilli()})
	}
	slices.SortFunc(out, func(a, b *controlv1.AppHealth) int { return strings.Compare(a.AppId, b.AppId) })
	return out
}

// Run sends a report every 15 s +- 20 % until ctx ends. A report that does not arrive is
// replaced by the next one.
func Run(ctx context.Context, report func() *controlv1.HealthRequest, send func(context.Context, *controlv1.HealthRequest) error, log *slog.Logger) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		sending, cancel := context.WithTimeout(ctx, sendTimeout)
		if err := send(sending, report()); err != nil && ctx.Err() == nil {
			log.DebugContext(ctx, "health report not delivered", "error", err)
		}
		cancel()
		timer.Reset(time.Duration(float64(reportEvery) * (0.8 + 0.4*rand.Float64())))
	}
}
