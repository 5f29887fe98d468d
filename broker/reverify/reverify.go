// Package reverify asks issuers again about everybody who is signed in. The broker runs it
// beside its other parts: an issuer that does not answer must hold up nothing else, and
// nobody whom it could not be asked about may pass for confirmed.
//
// One round asks a bounded number of users at a time, each within a deadline. The first
// user of an issuer who gets no answer speaks for all others of that issuer: they are
// marked stale at once and asked in the next round. Whoever a round had no time for is
// marked stale as well. What stale means for an app is the policy's business.
//
// Run owns every goroutine; it returns when all have ended.
package reverify

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// Shortest is the shortest interval, whatever the policy asks for.
	Shortest = time.Minute
	// tick is how often it is looked who is due: late by half of the shortest interval at most.
	tick = 30 * time.Second
	// parallel bounds the questions under way: issuers limit their callers.
	parallel = 8
	// askTime bounds one question: a refresh and a look at userinfo.
	askTime = 15 * time.Second
	// noteTime bounds a write behind a round whose time is over.
	noteTime = 5 * time.Second
)

// Sessions is what reverify reads and marks; *session.Sessions in the broker.
type Sessions interface {
	List(ctx context.Context, f session.Filter) ([]session.Session, error)
	Verified(ctx context.Context, id ids.SessionID, now time.Time) (session.Session, error)
	SetStale(ctx context.Context, id ids.SessionID, mark session.Stale, on bool) (session.Session, error)
	End(ctx context.Context, id ids.SessionID, cause session.Cause, now time.Time) (session.Session, error)
}

// Issuers asks about users; *identity.Service in the broker.
type Issuers interface {
	// AskedOf is the issuer that a question about the user goes to; empty when there is
	// none to ask, so that Reverify needs no network.
	AskedOf(ctx context.Context, user ids.UserID) (ids.IssuerID, error)
	Reverify(ctx context.Context, user ids.UserID) (identity.Outcome, error)
}

// Config is what Run needs; all fields are required.
type Config struct {
	Sessions Sessions
	Issuers  Issuers
	// Interval is how long a confirmation lasts, by the policy in force; Shortest is the least.
	Interval func() time.Duration
	Log      *slog.Logger
}

// Run asks until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := once(ctx, cfg); err != nil && ctx.Err() == nil {
			cfg.Log.WarnContext(ctx, "sessions not verified again", "error", err)
		}
	}
}

// once asks about all users who are due, those first who have waited longest. A round may
// take as long as a confirmation lasts.
func once(ctx context.Context, cfg Config) error {
	live, err := cfg.Sessions.List(ctx, session.Filter{})
	if err != nil {
		return err
	}
	every := max(Shortest, cfg.Interval())
	due := dueBy(live, time.Now().Add(-every))
	asking, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	r := &round{Config: cfg, asking: asking, silent: map[ids.IssuerID]bool{}}
	queue := make(chan []session.Session)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(queue)
	for range min(parallel, len(due)) {
		wg.Go(func() {
			for of := range queue {
				r.user(ctx, of)
			}
		})
	}
	for _, of := range due {
		queue <- of // each worker takes askTime at most, and none once the round is over
	}
	return nil
}

// dueBy returns the sessions last confirmed at or before a time, by user, oldest first.
func dueBy(live []session.Session, before time.Time) [][]session.Session {
	live = slices.Clone(live)
	slices.SortStableFunc(live, func(a, b session.Session) int { return a.LastVerified.Compare(b.LastVerified) })
	var out [][]session.Session
	at := map[ids.UserID]int{}
	for _, s := range live {
		if s.LastVerified.After(before) || !s.EndedAt.IsZero() {
			continue
		}
		i, ok := at[s.User]
		if !ok {
			i, out = len(out), append(out, nil)
			at[s.User] = i
		}
		out[i] = append(out[i], s)
	}
	return out
}

// round is one pass over the users who are due.
type round struct {
	Config
	asking context.Context // ends when the round has no time left

	mu     sync.Mutex // guards silent
	silent map[ids.IssuerID]bool
}

// user asks about one user and notes the answer on the user's sessions.
func (r *round) user(ctx context.Context, of []session.Session) {
	if ctx.Err() != nil {
		return // the broker ends: nothing is known of this user
	}
	out := r.ask(ctx, of[0].User)
	if ctx.Err() != nil && out == identity.OutcomeStale {
		return // cut short by the end of the broker, not by the issuer
	}
	note, cancel := context.WithTimeout(ctx, noteTime)
	defer cancel()
	for _, s := range of {
		if err := r.note(note, s, out); err != nil {
			r.Log.WarnContext(ctx, "verification not noted", "session", s.ID, "error", err)
		}
	}
}

// ask returns what is known of a user now; whatever keeps it from knowing is stale.
func (r *round) ask(ctx context.Context, user ids.UserID) identity.Outcome {
	if r.asking.Err() != nil {
		return identity.OutcomeStale
	}
	asking, cancel := context.WithTimeout(r.asking, askTime)
	defer cancel()
	issuer, err := r.Issuers.AskedOf(asking, user)
	if err != nil {
		r.Log.WarnContext(ctx, "user not verified again", "user", user, "error", err)
		return identity.OutcomeStale
	}
	if issuer != "" && r.isSilent(issuer) {
		return identity.OutcomeStale
	}
	out, err := r.Issuers.Reverify(asking, user)
	if out == identity.OutcomeStale && issuer != "" && (err == nil || errors.Is(err, context.DeadlineExceeded)) {
		r.setSilent(issuer)
	}
	if err != nil {
		r.Log.WarnContext(ctx, "user not verified again", "user", user, "error", err)
		if out != identity.OutcomeRefused {
			return identity.OutcomeStale
		}
	}
	return out
}

func (r *round) isSilent(issuer ids.IssuerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.silent[issuer]
}

func (r *round) setSilent(issuer ids.IssuerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent[issuer] = true
}

// note writes an outcome. A session about which nobody can be asked is neither confirmed
// nor stale: its own age has to do.
func (r *round) note(ctx context.Context, s session.Session, out identity.Outcome) error {
	var err error
	stale := slices.Contains(s.Stale, session.IdentityStale)
	switch {
	case out == identity.OutcomeFresh:
		_, err = r.Sessions.Verified(ctx, s.ID, time.Now())
	case out == identity.OutcomeRefused:
		_, err = r.Sessions.End(ctx, s.ID, session.CauseIssuer, time.Now())
	case out == identity.OutcomeNone:
		if stale {
			_, err = r.Sessions.SetStale(ctx, s.ID, session.IdentityStale, false)
		}
	case !stale: // and whatever outcome is not known
		_, err = r.Sessions.SetStale(ctx, s.ID, session.IdentityStale, true)
	}
	return err
}
