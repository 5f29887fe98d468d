package controlapi

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// askRate and askBurst bound what one device asks for, far above what a person's work
	// causes: a start asks once for each app in use.
	askRate  = 20 // per second
	askBurst = 100
	// keptBuckets is how many are kept before the full ones, which say nothing, are dropped.
	keptBuckets = 1024
)

// buckets bound the questions of each device. There are no more than enrolled devices.
type buckets struct {
	mu     sync.Mutex // guards device
	device map[ids.DeviceID]*rate.Limiter
}

func newBuckets() *buckets { return &buckets{device: map[ids.DeviceID]*rate.Limiter{}} }

// take takes a token of the device; an error says that there is none.
func (b *buckets) take(id ids.DeviceID, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.device[id]
	if l == nil {
		b.dropFullLocked(now)
		l = rate.NewLimiter(askRate, askBurst)
		b.device[id] = l
	}
	if l.AllowN(now, 1) {
		return nil
	}
	return &refusal{connect.CodeResourceExhausted, controlv1.Reason_REASON_TOO_OFTEN, "this device asks too often; it may ask again in a second"}
}

func (b *buckets) dropFullLocked(now time.Time) {
	if len(b.device) < keptBuckets {
		return
	}
	for id, l := range b.device {
		if l.TokensAt(now) >= askBurst {
			delete(b.device, id)
		}
	}
}

// asked names what a device asks for.
type asked struct {
	device ids.DeviceID
	app    ids.AppID
}

// turns lets the same question be answered once at a time, so that the second finds the
// grant of the first.
type turns struct {
	mu    sync.Mutex // guards byKey
	byKey map[asked]*turn
}

// turn is held by whoever has put the token into it.
type turn struct {
	token chan struct{}
	users int // who holds or waits, guarded by turns.mu
}

func newTurns() *turns { return &turns{byKey: map[asked]*turn{}} }

// enter waits for the turn until leave of the one before is called, or until ctx ends.
func (t *turns) enter(ctx context.Context, key asked) (leave func(), err error) {
	t.mu.Lock()
	one := t.byKey[key]
	if one == nil {
		one = &turn{token: make(chan struct{}, 1)}
		t.byKey[key] = one
	}
	one.users++
	t.mu.Unlock()
	select {
	case one.token <- struct{}{}:
		return func() { <-one.token; t.forget(key, one) }, nil
	case <-ctx.Done():
		t.forget(key, one)
		return nil, ctx.Err()
	}
}

func (t *turns) forget(key asked, one *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(t.byKey, key)
	}
}
