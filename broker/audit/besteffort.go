package audit

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	defaultQueue = 4096
	// repeatWindow is the time for which equal denials become one counted record (rule 31).
	repeatWindow = time.Minute
	// maxRepeats bounds the different denials that are counted at once; more share a bucket.
	maxRepeats = 4096
	// tickEvery is how often Run looks at counted denials and at a queue that did not go out.
	tickEvery = time.Second
	// signEvery is how often Run looks for records to sign.
	signEvery = 30 * time.Second
	// lastFlush bounds the writing at the end of Run.
	lastFlush = 5 * time.Second
)

// bestEffort holds records that never wait for the disk.
type bestEffort struct {
	kick chan struct{} // length 1: one wake-up is enough for any number of records

	mu      sync.Mutex
	max     int
	queue   []Event                 // guarded by mu
	lost    uint64                  // guarded by mu: not yet recorded as lost
	total   uint64                  // guarded by mu: lost since the start
	repeats map[repeatKey]*repeated // guarded by mu
}

// repeatKey is what makes two denials the same: not the port, the session or the receipt.
type repeatKey struct {
	kind                                       Kind
	user, device, app, conn, decision, reasons string
}

// repeated counts denials after the first.
type repeated struct {
	last  Event
	count uint64
	since time.Time
	until time.Time
}

func newBestEffort(limit int) bestEffort {
	return bestEffort{kick: make(chan struct{}, 1), max: limit, repeats: make(map[repeatKey]*repeated)}
}

// AppendBestEffort records ev soon and returns at once: for denials and revocations, which
// happen whether or not they can be recorded. The first of equal denials is recorded at once,
// the others of the same minute as one record with a count. When the disk does not take
// records, up to QueueLen wait; what finds no room is counted and recorded as lost later.
func (l *Log) AppendBestEffort(ev Event) {
	l.best.mu.Lock()
	if !l.best.countRepeatLocked(ev, time.Now()) {
		l.best.pushLocked(ev)
	}
	l.best.mu.Unlock()
	select {
	case l.best.kick <- struct{}{}:
	default: // Run is already woken
	}
}

// Lost returns how many best-effort records found no room since the start.
func (l *Log) Lost() uint64 {
	l.best.mu.Lock()
	defer l.best.mu.Unlock()
	return l.best.total
}

func (b *bestEffort) pushLocked(ev Event) {
	if len(b.queue) >= b.max {
		b.lost++
		b.total++
		return
	}
	b.queue = append(b.queue, ev)
}

// countRepeatLocked reports whether ev was only counted.
func (b *bestEffort) countRepeatLocked(ev Event, now time.Time) bool {
	if ev.Kind != Denied && ev.Kind != SignInFailed {
		return false
	}
	key := keyOf(ev)
	if _, known := b.repeats[key]; !known && len(b.repeats) >= maxRepeats {
		key = repeatKey{kind: ev.Kind}
		ev = Event{Kind: ev.Kind, Details: map[string]string{"various": "true"}}
	}
	r, ok := b.repeats[key]
	if !ok {
		b.repeats[key] = &repeated{since: now, until: now}
		return false
	}
	r.last, r.until = ev, now
	r.count++
	return true
}

func keyOf(ev Event) repeatKey {
	return repeatKey{
		kind: ev.Kind, user: string(ev.User), device: string(ev.Device), app: string(ev.App), conn: string(ev.Connector),
		decision: ev.Decision, reasons: strings.Join(ev.Reasons, "\x00"),
	}
}

// expireLocked queues the counts of windows that ended before now.
func (b *bestEffort) expireLocked(now time.Time, all bool) {
	for key, r := range b.repeats {
		if !all && now.Sub(r.since) < repeatWindow {
			continue
		}
		delete(b.repeats, key)
		if r.count > 0 {
			b.pushLocked(r.record())
		}
	}
}

// record is the counted record: the last event, how many, from when to when.
func (r *repeated) record() Event {
	ev := r.last
	ev.Count = r.count
	ev.Details = maps.Clone(ev.Details)
	if ev.Details == nil {
		ev.Details = make(map[string]string)
	}
	ev.Details["from_ms"] = strconv.FormatInt(r.since.UnixMilli(), 10)
	ev.Details["to_ms"] = strconv.FormatInt(r.until.UnixMilli(), 10)
	return ev
}

// take removes up to maxGroup events from the queue; the lost ones come first.
func (b *bestEffort) take(all bool) []*pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expireLocked(time.Now(), all)
	n := min(len(b.queue), maxGroup)
	group := make([]*pending, 0, n+1)
	if b.lost > 0 {
		group = append(group, &pending{ev: Event{Kind: Lost, Count: b.lost}})
	}
	for _, ev := range b.queue[:n] {
		group = append(group, &pending{ev: ev})
	}
	b.queue, b.lost = b.queue[n:], 0
	return group
}

// putBack returns a group that could not be written, in front of what came since.
func (b *bestEffort) putBack(group []*pending) {
	b.mu.Lock()
	defer b.mu.Unlock()
	queue := make([]Event, 0, len(group)+len(b.queue))
	for _, p := range group {
		if p.ev.Kind == Lost {
			b.lost += p.ev.Count
			continue
		}
		queue = append(queue, p.ev)
	}
	b.queue = append(queue, b.queue...)
	if over := len(b.queue) - b.max; over > 0 {
		b.queue = b.queue[:b.max]
		b.lost += uint64(over)
		b.total += uint64(over)
	}
}

// Flush writes what waits; all includes counted denials whose minute is not over.
func (l *Log) Flush(ctx context.Context, all bool) error {
	for {
		group := l.best.take(all)
		if len(group) == 0 {
			return nil
		}
		if err := l.writeGroup(ctx, group); err != nil {
			l.best.putBack(group)
			return err
		}
	}
}

// Run writes best-effort records and signs segments until ctx ends, then writes the rest.
func (l *Log) Run(ctx context.Context) error {
	tick, sign := time.NewTicker(tickEvery), time.NewTicker(signEvery)
	defer tick.Stop()
	defer sign.Stop()
	healthy := true
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-sign.C:
			healthy = l.note(ctx, healthy, l.SignSegments(ctx, false))
		case <-tick.C:
			healthy = l.note(ctx, healthy, l.Flush(ctx, false))
		case <-l.best.kick:
			if healthy { // else the tick tries again
				healthy = l.note(ctx, healthy, l.Flush(ctx, false))
			}
		}
	}
	return l.finish(ctx)
}

// note logs when the store stops or starts taking records.
func (l *Log) note(ctx context.Context, healthy bool, err error) bool {
	switch {
	case ctx.Err() != nil:
		return healthy
	case err != nil && healthy:
		l.log.Error("the audit cannot be written: nothing new is allowed", "error", err)
	case err == nil && !healthy:
		l.log.Info("the audit is written again")
	}
	return err == nil
}

// finish writes and signs what is left.
func (l *Log) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
	defer cancel()
	if err := l.Flush(ctx, true); err != nil {
		return err
	}
	return l.SignSegments(ctx, true)
}
