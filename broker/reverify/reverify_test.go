package reverify_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-zt/postern/broker/identity"
	"github.com/postern-zt/postern/broker/reverify"
	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// round is longer than the first tick, so that exactly one round has run to its end when
// nobody is slow.
const round = 50 * time.Second

// world is a list of sessions and issuers that answer as the test says. A user's name is
// "issuer/name"; a user of no issuer has nobody to be asked of.
type world struct {
	mu       sync.Mutex // guards all below
	sessions map[ids.SessionID]*session.Session
	verified map[ids.SessionID]bool
	writes   int
	asked    map[ids.UserID]int
	answer   func(ctx context.Context, u ids.UserID) (identity.Outcome, error)
}

func newWorld(users ...ids.UserID) *world {
	w := &world{sessions: map[ids.SessionID]*session.Session{}, verified: map[ids.SessionID]bool{}, asked: map[ids.UserID]int{}}
	for _, u := range users {
		w.add(ids.SessionID("ses_"+u), u, time.Now().Add(-time.Hour))
	}
	return w
}

func (w *world) add(id ids.SessionID, u ids.UserID, verified time.Time) {
	w.sessions[id] = &session.Session{ID: id, User: u, LastVerified: verified}
}

func (w *world) run(t *testing.T, interval, until time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), until)
	defer cancel()
	if err := reverify.Run(ctx, reverify.Config{
		Sessions: w, Issuers: w, Interval: func() time.Duration { return interval }, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Error(err)
	}
}

func (w *world) stale(id ids.SessionID) bool {
	return slices.Contains(w.sessions[id].Stale, session.IdentityStale)
}

func (w *world) List(context.Context, session.Filter) ([]session.Session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []session.Session
	for _, s := range w.sessions {
		if s.EndedAt.IsZero() {
			out = append(out, *s)
		}
	}
	return out, nil
}

func (w *world) change(ctx context.Context, id ids.SessionID, do func(s *session.Session)) (session.Session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return session.Session{}, err
	}
	w.writes++
	do(w.sessions[id])
	return *w.sessions[id], nil
}

func (w *world) Verified(ctx context.Context, id ids.SessionID, now time.Time) (session.Session, error) {
	return w.change(ctx, id, func(s *session.Session) {
		w.verified[id], s.LastVerified, s.Stale = true, now, session.Mark(s.Stale, session.IdentityStale, false)
	})
}

func (w *world) SetStale(ctx context.Context, id ids.SessionID, m session.Stale, on bool) (session.Session, error) {
	return w.change(ctx, id, func(s *session.Session) { s.Stale = session.Mark(s.Stale, m, on) })
}

func (w *world) End(ctx context.Context, id ids.SessionID, c session.Cause, now time.Time) (session.Session, error) {
	return w.change(ctx, id, func(s *session.Session) { s.EndedAt, s.EndCause = now, c })
}

func (w *world) AskedOf(_ context.Context, u ids.UserID) (ids.IssuerID, error) {
	issuer, _, _ := strings.Cut(string(u), "/")
	return ids.IssuerID(issuer), nil
}

func (w *world) Reverify(ctx context.Context, u ids.UserID) (identity.Outcome, error) {
	w.mu.Lock()
	w.asked[u]++
	w.mu.Unlock()
	return w.answer(ctx, u)
}

// hang answers like an issuer whose packets are dropped.
func hang(ctx context.Context) (identity.Outcome, error) {
	<-ctx.Done()
	return identity.OutcomeStale, ctx.Err()
}

func people(issuer string, n int) (out []ids.UserID) {
	for i := range n {
		out = append(out, ids.UserID(fmt.Sprintf("%s/%d", issuer, i)))
	}
	return out
}

func TestASilentIssuerLeavesNobodyUnmarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down, up, local := people("down", 1000), people("up", 20), people("", 1)
		w := newWorld(slices.Concat(down, up, local)...)
		w.answer = func(ctx context.Context, u ids.UserID) (identity.Outcome, error) {
			if strings.HasPrefix(string(u), "down") {
				return hang(ctx)
			}
			return identity.OutcomeFresh, nil
		}
		w.run(t, 5*time.Minute, round)
		for _, u := range down {
			if id := ids.SessionID("ses_" + u); !w.stale(id) || w.verified[id] {
				t.Fatalf("%s: stale %v, verified %v", u, w.stale(id), w.verified[id])
			}
		}
		for _, u := range slices.Concat(up, local) {
			if id := ids.SessionID("ses_" + u); w.stale(id) || !w.verified[id] {
				t.Errorf("%s: stale %v, verified %v", u, w.stale(id), w.verified[id])
			}
		}
		if asked := len(w.asked) - len(up) - len(local); asked < 1 || asked > 8 {
			t.Errorf("a silent issuer was asked about %d users", asked)
		}
	})
}

func TestARepeatedOutageWritesNothingAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(people("down", 50)...)
		w.answer = func(ctx context.Context, _ ids.UserID) (identity.Outcome, error) { return identity.OutcomeStale, nil }
		w.run(t, time.Minute, 10*time.Minute)
		if w.writes != 50 {
			t.Errorf("%d writes for 50 sessions that went stale once", w.writes)
		}
		w.answer = func(context.Context, ids.UserID) (identity.Outcome, error) { return identity.OutcomeFresh, nil }
		w.run(t, time.Minute, round)
		for id := range w.sessions {
			if w.stale(id) {
				t.Errorf("%s is stale behind the outage", id)
			}
		}
	})
}

func TestWhomTheRoundHasNoTimeFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(people("slow", 200)...)
		w.answer = func(ctx context.Context, _ ids.UserID) (identity.Outcome, error) {
			select {
			case <-time.After(9 * time.Second):
				return identity.OutcomeFresh, nil
			case <-ctx.Done():
				return identity.OutcomeStale, ctx.Err()
			}
		}
		w.run(t, time.Minute, 30*time.Second+time.Minute+20*time.Second)
		confirmed := 0
		for id := range w.sessions {
			switch {
			case w.verified[id] && !w.stale(id):
				confirmed++
			case !w.stale(id):
				t.Fatalf("%s passes for confirmed", id)
			}
		}
		if confirmed == 0 {
			t.Error("nobody was confirmed")
		}
	})
}

func TestOutcomes(t *testing.T) {
	cases := map[string]struct {
		out                    identity.Outcome
		err                    error
		verified, stale, ended bool
	}{
		"fresh":             {out: identity.OutcomeFresh, verified: true},
		"stale":             {out: identity.OutcomeStale, stale: true},
		"none":              {out: identity.OutcomeNone},
		"refused":           {out: identity.OutcomeRefused, ended: true},
		"refused, not kept": {out: identity.OutcomeRefused, err: errors.New("the store is away"), ended: true},
		"unknown":           {out: "surprise", stale: true},
		"zero":              {stale: true},
		"fresh with error":  {out: identity.OutcomeFresh, err: errors.New("the store is away"), stale: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("idp/ann")
				w.add("second", "idp/ann", time.Now().Add(-time.Hour))
				w.add("young", "idp/ben", time.Now())
				w.answer = func(context.Context, ids.UserID) (identity.Outcome, error) { return c.out, c.err }
				w.run(t, 5*time.Minute, 35*time.Second)
				for _, id := range []ids.SessionID{"ses_idp/ann", "second"} {
					ended := !w.sessions[id].EndedAt.IsZero()
					if w.verified[id] != c.verified || w.stale(id) != c.stale || ended != c.ended {
						t.Errorf("%s: verified %v, stale %v, ended %v", id, w.verified[id], w.stale(id), ended)
					}
				}
				if w.asked["idp/ann"] != 1 || w.asked["idp/ben"] != 0 {
					t.Errorf("asked %v, want ann once and ben not at all", w.asked)
				}
			})
		})
	}
}

func TestAnErrorOfOursSpeaksForNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(people("idp", 40)...)
		w.answer = func(_ context.Context, u ids.UserID) (identity.Outcome, error) {
			if u == "idp/0" {
				return identity.OutcomeStale, errors.New("the key cannot be opened")
			}
			return identity.OutcomeFresh, nil
		}
		w.run(t, 5*time.Minute, round)
		for id := range w.sessions {
			if got := w.stale(id); got != (id == "ses_idp/0") {
				t.Errorf("%s: stale %v", id, got)
			}
		}
	})
}
