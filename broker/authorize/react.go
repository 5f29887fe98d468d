package authorize

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// dueEvery is the longest wait before grants whose time has come are decided again.
	dueEvery = time.Second
	// acknowledgeWithin is how long a connector has before the relay cuts the link
	// (decisions rule 9).
	acknowledgeWithin = time.Second
)

// Change is a change event of the store.
type Change struct{ Topic, Key string }

// Changes is a batch of them; Reread says that anything may have changed.
type Changes struct {
	List   []Change
	Reread bool
}

// Listener hears what a change means for those who are connected.
type Listener interface {
	// GrantsEnded tells the device and the connectors of revoked grants.
	GrantsEnded(list []Ended)
	// CatalogChanged tells every device and connector to read apps anew; PolicyChanged
	// tells devices that denials may be over.
	CatalogChanged()
	PolicyChanged()
	// UserChanged, SessionChanged, DeviceChanged, ConnectorChanged and RelaysChanged name
	// whose state is new.
	UserChanged(id ids.UserID)
	SessionChanged(ctx context.Context, id ids.SessionID)
	DeviceChanged(id ids.DeviceID)
	ConnectorChanged(id ids.ConnectorID)
	RelaysChanged()
	// CutLinks ends at the relays the links of grants whose connectors did not answer.
	CutLinks(ctx context.Context, list []Ended)
	// CutDevice has the relays refuse the tickets of a device that is blocked or removed.
	CutDevice(ctx context.Context, id ids.DeviceID)
}

// ReactorConfig is what a Reactor needs.
type ReactorConfig struct {
	Authorizer *Authorizer
	Ledger     *grants.Ledger
	Sources    Sources
	// Watch yields batches until ctx ends.
	Watch func(ctx context.Context) iter.Seq2[Changes, error]
	// Reload reads catalog, policy, keys and revocations anew, as far as topics ask;
	// empty asks for all.
	Reload   func(ctx context.Context, topics map[string]bool) error
	Topics   Topics
	Listener Listener
	Now      func() time.Time
	Log      *slog.Logger
}

// Topics are the names of events that belong to packages which authorize does not import.
type Topics struct{ Policy, Revocation string }

// Reactor finds out which grants a change touches, and has exactly those decided again.
type Reactor struct {
	cfg ReactorConfig
	log *slog.Logger

	mu    sync.Mutex // guards uncut and stale
	uncut []uncut
	// stale is why state could not be read anew; nil when what is in force is the newest.
	stale error
}

// uncut is a batch of ended grants whose connectors have not acknowledged yet, or a device
// that may have to go.
type uncut struct {
	device ids.DeviceID
	at     time.Time
	ended  []Ended
}

// NewReactor returns a Reactor.
func NewReactor(cfg ReactorConfig) *Reactor {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Reactor{cfg: cfg, log: cfg.Log.With("component", "reactor")}
}

// Run follows the changes until ctx ends. A batch is carried out before the next is read,
// and nothing is queued meanwhile.
func (r *Reactor) Run(ctx context.Context) error {
	for batch, err := range r.cfg.Watch(ctx) {
		if err != nil {
			r.log.WarnContext(ctx, "changes not read", "error", err)
			continue
		}
		if err := r.handle(ctx, batch); err != nil && ctx.Err() == nil {
			r.log.ErrorContext(ctx, "change not carried out", "error", err)
		}
	}
	return nil
}

// RunDue decides again those grants whose time has come.
func (r *Reactor) RunDue(ctx context.Context) error {
	timer := time.NewTimer(dueEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(r.due(ctx))
	}
}

// due does what has come due and returns when to look again.
func (r *Reactor) due(ctx context.Context) time.Duration {
	r.cfg.Authorizer.lookAround()
	r.cutLate(ctx, r.cfg.Now())
	if revoked := r.cfg.Authorizer.takeRevoked(); len(revoked) > 0 {
		r.watchFor(revoked)
	}
	if idle := r.cfg.Authorizer.endIdle(ctx); len(idle) > 0 {
		r.Ended(idle)
	}
	due, next := r.cfg.Ledger.Due(r.cfg.Now())
	r.reevaluate(ctx, due, grants.CauseNoLonger)
	wait := dueEvery
	if !next.IsZero() {
		wait = min(wait, max(10*time.Millisecond, next.Sub(r.cfg.Now())))
	}
	if len(due) > 0 {
		wait = max(wait, 100*time.Millisecond)
	}
	return wait
}

// handle carries out one batch: first what must be read anew, then who must be judged.
func (r *Reactor) handle(ctx context.Context, b Changes) error {
	topics := make(map[string]bool, len(b.List))
	for _, c := range b.List {
		topics[c.Topic] = true
	}
	if b.Reread {
		topics = nil
	}
	r.reload(ctx, topics)
	if b.Reread {
		r.everything(ctx)
		return nil
	}
	var errs []error
	for _, c := range b.List {
		errs = append(errs, r.change(ctx, c))
	}
	return errors.Join(errs...)
}

// reload reads state anew. When that fails, what was read before stays in force,
// revocation goes on with it, and RunDue tries again.
func (r *Reactor) reload(ctx context.Context, topics map[string]bool) {
	err := r.cfg.Reload(ctx, topics)
	if err != nil {
		r.log.ErrorContext(ctx, "state not read anew", "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || topics == nil {
		r.stale = err
	}
}

// Stale says why the broker works with older state than the store holds, or nil.
func (r *Reactor) Stale() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stale
}

// retry reads everything anew after a failure, and has everything judged by it.
func (r *Reactor) retry(ctx context.Context) {
	if r.Stale() == nil {
		return
	}
	if r.reload(ctx, nil); r.Stale() == nil {
		r.everything(ctx)
	}
}

func (r *Reactor) everything(ctx context.Context) {
	r.reevaluate(ctx, r.cfg.Ledger.Matching(grants.Everything()), grants.CauseNoLonger)
	r.cfg.Listener.CatalogChanged()
	r.cfg.Listener.RelaysChanged()
}

// change carries out one event.
func (r *Reactor) change(ctx context.Context, c Change) error {
	l := r.cfg.Listener
	switch c.Topic {
	case directory.TopicUser:
		r.reevaluate(ctx, r.cfg.Ledger.Matching(grants.User(ids.UserID(c.Key))), grants.CauseNoLonger)
		l.UserChanged(ids.UserID(c.Key))
	case directory.TopicGroup:
		r.everythingBecause(ctx, grants.CauseNoLonger)
		l.PolicyChanged()
	case registry.TopicDevice, registry.TopicFacts:
		return r.device(ctx, ids.DeviceID(c.Key), c.Topic)
	case session.Topic:
		r.session(ctx, ids.SessionID(c.Key))
	case catalog.TopicApp:
		r.reevaluate(ctx, r.cfg.Ledger.Matching(grants.App(ids.AppID(c.Key))), grants.CauseAppChanged)
		l.CatalogChanged()
	case catalog.TopicSite, catalog.TopicSuffix:
		l.CatalogChanged()
	case registry.TopicConnector:
		l.ConnectorChanged(ids.ConnectorID(c.Key))
	case registry.TopicRelay:
		l.RelaysChanged()
	case r.cfg.Topics.Policy:
		r.everythingBecause(ctx, grants.CausePolicyChanged)
		l.PolicyChanged()
	}
	return nil
}

func (r *Reactor) everythingBecause(ctx context.Context, cause grants.Cause) {
	r.reevaluate(ctx, r.cfg.Ledger.Matching(grants.Everything()), cause)
}

func (r *Reactor) device(ctx context.Context, id ids.DeviceID, topic string) error {
	cause := grants.CauseFactsChanged
	if topic == registry.TopicDevice {
		cause = grants.CauseDeviceBlocked
		r.cfg.Listener.DeviceChanged(id)
		r.cutSoon(uncut{device: id})
	}
	d, err := r.cfg.Sources.Device(ctx, id)
	if err != nil { // it is gone, or cannot be read: its grants are found by its id
		others := func(g *grants.Grant) bool { return g.Device != id }
		r.reevaluate(ctx, slices.DeleteFunc(r.cfg.Ledger.Matching(grants.Everything()), others), cause)
		return err
	}
	r.reevaluate(ctx, r.cfg.Ledger.Matching(grants.Device(d.Identity.Key)), cause)
	return nil
}

func (r *Reactor) session(ctx context.Context, id ids.SessionID) {
	if id == "" {
		r.everythingBecause(ctx, grants.CauseSessionEnded)
		return
	}
	r.reevaluate(ctx, r.cfg.Ledger.Matching(grants.Session(id)), grants.CauseSessionEnded)
	r.cfg.Listener.SessionChanged(ctx, id)
}

// reevaluate has grants decided again and tells who must know.
func (r *Reactor) reevaluate(ctx context.Context, list []*grants.Grant, cause grants.Cause) {
	if len(list) == 0 {
		return
	}
	if ended := r.cfg.Authorizer.Reevaluate(ctx, list, cause); len(ended) > 0 {
		r.Ended(ended)
	}
}

// Ended tells devices and connectors; RunDue tells the relays about connectors that did
// not acknowledge in time.
func (r *Reactor) Ended(ended []Ended) {
	r.cfg.Listener.GrantsEnded(ended)
	r.watchFor(ended)
}

// watchFor has the links of ended grants cut in a while.
func (r *Reactor) watchFor(ended []Ended) {
	r.cutSoon(uncut{ended: ended})
}

// cutSoon has something cut at the relays after the connectors had their time: they end
// flows with a word to the program, a relay only with silence.
func (r *Reactor) cutSoon(u uncut) {
	u.at = r.cfg.Now().Add(acknowledgeWithin)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uncut = append(r.uncut, u)
}

// cutLate hands batches whose time is over to the listener.
func (r *Reactor) cutLate(ctx context.Context, now time.Time) {
	r.mu.Lock()
	n := 0
	for n < len(r.uncut) && !now.Before(r.uncut[n].at) {
		n++
	}
	late := r.uncut[:n:n]
	r.uncut = r.uncut[n:]
	r.mu.Unlock()
	for _, u := range late {
		if u.device != "" {
			r.cfg.Listener.CutDevice(ctx, u.device)
			continue
		}
		r.cfg.Listener.CutLinks(ctx, u.ended)
	}
}
