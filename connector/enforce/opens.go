package enforce

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// openWindow is the time over which opens are counted, and refused ones recorded once.
	openWindow = time.Minute
	// recordEvery is how often RunRefusals looks for windows that are over.
	recordEvery = time.Second
)

// opener is whose opens are counted together: a device at an app, over all its grants, so
// that asking anew gives no new opens.
type opener struct {
	peer ids.KeyID
	app  ids.AppID
}

// opens counts flow opens within a minute from the first. Time is that of the boot clock.
type opens struct {
	mu      sync.Mutex // guards the fields below
	windows map[opener]*window
	// due are records of windows that a later one has replaced.
	due []chain.Event
}

// window is one minute of an opener.
type window struct {
	began  time.Duration
	opened uint32
	// refused is the record of what was refused, nil for nothing. It is written when the
	// window is over, because a record for each refusal would make a flood of them.
	refused *chain.Event
}

// take counts one open; false when the grant allows no more in this minute.
func (o *opens) take(g *grant.Grant, rec link.FlowRecord, self ids.ConnectorID, now time.Duration) bool {
	if g.OpensPerMinute == 0 {
		return true
	}
	key := opener{g.PeerKey, g.App}
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.windows[key]
	if w != nil && now-w.began >= openWindow {
		o.endLocked(key, w)
		w = nil
	}
	if w == nil {
		if o.windows == nil {
			o.windows = make(map[opener]*window)
		}
		w = &window{began: now}
		o.windows[key] = w
	}
	if w.opened < g.OpensPerMinute {
		w.opened++
		return true
	}
	if w.refused == nil {
		w.refused = refusedEvent(g, rec, self)
	}
	w.refused.Count++
	return false
}

func (o *opens) endLocked(key opener, w *window) {
	delete(o.windows, key)
	if w.refused != nil {
		o.due = append(o.due, *w.refused)
	}
}

// over takes out the windows that are over, all of them when all is set, and returns the
// records of those in which something was refused.
func (o *opens) over(now time.Duration, all bool) []chain.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, w := range o.windows {
		if all || now-w.began >= openWindow {
			o.endLocked(key, w)
		}
	}
	out := o.due
	o.due = nil
	return out
}

func refusedEvent(g *grant.Grant, rec link.FlowRecord, self ids.ConnectorID) *chain.Event {
	return &chain.Event{
		Kind: chain.FlowRefused, User: g.User, Session: g.Session, App: g.App, Connector: self, Grant: g.ID, Receipt: g.Receipt,
		Reasons: []string{frame.TooManyOpens.String()},
		Details: map[string]string{
			"network": network(rec.Network).String(), "port": strconv.Itoa(int(rec.Port)),
			"limit": strconv.FormatUint(uint64(g.OpensPerMinute), 10),
		},
	}
}

// RunRefusals records what was refused, once a minute for each device and app, until ctx
// ends. It stands apart from Run because a disk that stalls must not delay what ends flows.
func (e *Enforcer) RunRefusals(ctx context.Context) error {
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			e.recordRefusals(true)
			return nil
		case <-tick.C:
			e.recordRefusals(false)
		}
	}
}

func (e *Enforcer) recordRefusals(all bool) {
	for _, event := range e.opens.over(e.cfg.Now().Boot, all) {
		if err := e.cfg.Recorder.Append(event); err != nil {
			e.log.Error("refused flows not recorded", "error", err)
		}
	}
}
