package grants

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// tidyEvery is how often Run takes expired grants out.
	tidyEvery = time.Minute
	// retryEvery is how often Run tries to store what is queued while the store fails.
	retryEvery = time.Second
	// keepEnded is how long ended grants stay for people to look at; decisions and flows
	// are in the audit for longer.
	keepEnded = 7 * 24 * time.Hour
)

// Run brings revocations to the store and takes expired grants out, until ctx ends; then it
// tries once more to store what is queued.
func (l *Ledger) Run(ctx context.Context) error {
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	retry := time.NewTimer(retryEvery)
	defer retry.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return l.lastFlush(ctx)
		case <-l.kick:
		case <-retry.C:
		case <-tidy.C:
			l.tidyLogged(ctx)
		}
		failing = l.flushLogged(ctx, failing)
		if failing {
			retry.Reset(retryEvery)
		}
	}
}

// flushLogged logs the beginning and the end of a failure, not each try.
func (l *Ledger) flushLogged(ctx context.Context, failing bool) bool {
	err := l.Flush(ctx)
	switch {
	case err != nil && ctx.Err() == nil && !failing:
		l.log.Error("revocations are in force but not durable", "error", err, "count", l.Queued())
	case err == nil && failing:
		l.log.Info("revocations are durable again")
	}
	return err != nil
}

func (l *Ledger) tidyLogged(ctx context.Context) {
	if err := l.Tidy(ctx, l.cfg.Now()); err != nil && ctx.Err() == nil {
		l.log.Warn("expired grants stay in the store", "error", err)
	}
}

// lastFlush gives the store a moment after the end of ctx.
func (l *Ledger) lastFlush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return l.Flush(ctx)
}

// Tidy takes out grants past their hard end and revocations that can end nothing any more,
// in memory and in the store.
func (l *Ledger) Tidy(ctx context.Context, now time.Time) error {
	l.mu.Lock()
	l.index.expire(now)
	l.index.sweep()
	l.pruneLocked(now)
	l.mu.Unlock()
	if err := l.cfg.Store.TidyGrants(ctx, now, now.Add(-keepEnded)); err != nil {
		return fmt.Errorf("tidy grants: %w", err)
	}
	return nil
}

// pruneLocked forgets revocations that are durable and whose grants have all ended by
// themselves.
func (l *Ledger) pruneLocked(now time.Time) {
	l.revs = slices.DeleteFunc(l.revs, func(r *Revocation) bool {
		if !now.After(r.KeepUntil) || slices.Contains(l.queue, r) {
			return false
		}
		l.pruned = max(l.pruned, r.Sequence)
		return true
	})
}
