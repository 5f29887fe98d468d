package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"
)

const (
	// maxBatch is how many changes one batch names; whoever is further behind reads everything.
	maxBatch = 1024
	// pollEvery finds changes of other processes when their wake-up was lost.
	pollEvery = 2 * time.Second
	// keepChanges is how long change events are kept for watchers that come back.
	keepChanges = time.Hour
	// pruneEvery is how often Run forgets old change events.
	pruneEvery = 10 * time.Minute
)

// Batch is what a watcher learns: the version it is at after the batch, and either the
// changes up to there, in order, or that everything must be read again.
type Batch struct {
	Version Version
	Changes []Change
	// Reread is true at the start (after == 0), after a restore, when changes were lost to
	// this watcher because it was slow, and every RereadEvery. Changes is empty then.
	Reread bool
}

// Watch yields the changes after the sequence after, for ever, until ctx ends or the caller
// breaks; after == 0 starts with a Reread. Nothing is queued: a batch is read when the caller
// asks for it, so a slow caller costs no memory and gets one Reread. A failed read is
// yielded as an error and tried again. Changes of other processes arrive at once while Run
// runs, else within 2 s.
func (s *Store) Watch(ctx context.Context, after uint64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		w := watcher{store: s, at: Version{Seq: after}, rereadAt: time.Now().Add(s.cfg.RereadEvery)}
		for ctx.Err() == nil {
			woken := s.wake.wait()
			batch, err := w.next(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil || batch.Reread || len(batch.Changes) > 0 {
				if !yield(batch, err) {
					return
				}
			}
			if err == nil && len(batch.Changes) == maxBatch {
				continue
			}
			w.sleep(ctx, woken)
		}
	}
}

// watcher is the place of one Watch.
type watcher struct {
	store    *Store
	at       Version
	rereadAt time.Time
}

// next reads the batch after w.at; it is empty when nothing happened.
func (w *watcher) next(ctx context.Context) (Batch, error) {
	now, err := w.store.Version(ctx)
	if err != nil {
		return Batch{}, err
	}
	if w.at.Epoch == 0 && w.at.Seq != 0 {
		w.at.Epoch = now.Epoch
	}
	if now.Epoch != w.at.Epoch || now.Seq < w.at.Seq || !time.Now().Before(w.rereadAt) {
		return w.reread(now), nil
	}
	if now.Seq == w.at.Seq {
		return Batch{Version: now}, nil
	}
	return w.changes(ctx, now)
}

// changes reads what lies between w.at and now. The sequence has no holes, so a missing
// number means that it was pruned.
func (w *watcher) changes(ctx context.Context, now Version) (Batch, error) {
	if now.Seq-w.at.Seq > maxBatch {
		return w.reread(now), nil
	}
	list, err := scanRows(ctx, w.store.read(ctx), scanChange,
		`SELECT seq, topic, key FROM changes WHERE seq > $1 AND seq <= $2 ORDER BY seq`, w.at.Seq, now.Seq)
	if err != nil {
		return Batch{}, fmt.Errorf("read changes: %w", err)
	}
	if uint64(len(list)) != now.Seq-w.at.Seq {
		return w.reread(now), nil
	}
	w.at = now
	return Batch{Version: now, Changes: list}, nil
}

func scanChange(row scanner) (c Change, err error) {
	return c, row.Scan(&c.Seq, &c.Topic, &c.Key)
}

func (w *watcher) reread(now Version) Batch {
	w.at, w.rereadAt = now, time.Now().Add(w.store.cfg.RereadEvery)
	return Batch{Version: now, Reread: true}
}

// sleep waits for a change, the poll or the end of ctx.
func (w *watcher) sleep(ctx context.Context, woken <-chan struct{}) {
	timer := time.NewTimer(min(pollEvery, max(time.Until(w.rereadAt), 0)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-woken:
	case <-timer.C:
	}
}

// Run listens for changes of other brokers and forgets old change events, until ctx ends.
// The store works without it, with later wake-ups.
func (s *Store) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.listenLoop(ctx) })
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := s.PruneChanges(ctx, time.Now().Add(-keepChanges)); err != nil && ctx.Err() == nil {
			s.log.Warn("old change events stay", "error", err)
		}
	}
}

// listenLoop listens again after each lost connection.
func (s *Store) listenLoop(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.engine.listen(ctx, s.wake.all)
		if ctx.Err() != nil || err == nil {
			return
		}
		s.log.Warn("change listener lost, polling", "error", err)
		s.wake.all()
		if errors.Is(pauseFor(ctx, pollEvery), context.Canceled) {
			return
		}
	}
}

// pauseFor waits d or until ctx ends.
func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// broadcast wakes any number of waiters.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // closed and replaced by all
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// wait returns a channel that the next all closes. Take it before looking at the state.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) all() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
