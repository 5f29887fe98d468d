package tunnels_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/client/session"
	"github.com/postern-zt/postern/client/tunnels"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

func TestOpenReachesTheApp(t *testing.T) {
	w := newWorld(t, newSite(t))
	for range 3 {
		if err := w.echo(t, wiki); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.broker.count(); got != 1 {
		t.Errorf("the broker was asked %d times, want once", got)
	}
	if st := w.Status(); len(st) != 1 || st[0].Grants != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestDeniedIsRememberedUntilTold(t *testing.T) {
	s := newSite(t)
	w := newWorld(t, s)
	w.broker.set(func(b *broker) { b.deny = true })
	for range 3 {
		var denied *tunnels.DeniedError
		if err := w.echo(t, wiki); !errors.As(err, &denied) || denied.Receipt.Id != "K7M2-Q4TX" {
			t.Fatalf("OpenTCP = %v, want a denial with its receipt", err)
		}
	}
	if got := w.broker.count(); got != 1 || s.count() != 0 {
		t.Errorf("asked %d times, dialled %d times", got, s.count())
	}
	if w.Refused().GetId() != "K7M2-Q4TX" {
		t.Error("the latest refusal is not known")
	}
	w.broker.set(func(b *broker) { b.deny = false })
	w.ForgetDenials()
	if err := w.echo(t, wiki); err != nil {
		t.Errorf("after the policy changed: %v", err)
	}
}

func TestUnknownVerdictDenies(t *testing.T) {
	for _, v := range []controlv1.Verdict{controlv1.Verdict_VERDICT_UNSPECIFIED, 99} {
		w := newWorld(t, newSite(t))
		w.SetClientForTest(authorizer(func() *controlv1.AuthorizeResponse {
			return &controlv1.AuthorizeResponse{Receipt: &controlv1.Receipt{Verdict: v}, Grant: []byte("x"), GrantId: string(ids.New[ids.GrantID]())}
		}))
		var denied *tunnels.DeniedError
		if err := w.echo(t, wiki); !errors.As(err, &denied) {
			t.Errorf("verdict %v: %v", v, err)
		}
	}
}

// A program whose user has to sign in again waits for that, but not long.
func TestStepUpIsWaitedFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		signIn  time.Duration // when the user does; zero is never
		changes bool          // whether it helps
		waits   time.Duration
		want    bool
	}{
		{"in time", 3 * time.Second, true, 3 * time.Second, true},
		{"never", 0, false, 8 * time.Second, false},
		{"too late", 9 * time.Second, true, 8 * time.Second, false},
		{"in vain", 3 * time.Second, false, 8 * time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, newSite(t))
				w.broker.set(func(b *broker) { b.stepUp = true })
				if tt.signIn > 0 {
					time.AfterFunc(tt.signIn, func() {
						w.broker.set(func(b *broker) { b.stepUp = !tt.changes })
						w.ForgetDenials()
					})
				}
				start := time.Now()
				var work sync.WaitGroup
				for range 3 {
					work.Go(func() {
						err := w.echo(t, wiki)
						var denied *tunnels.DeniedError
						if tt.want != (err == nil) || !tt.want && !errors.As(err, &denied) {
							t.Errorf("OpenTCP = %v", err)
						}
					})
				}
				work.Wait()
				if took := time.Since(start); took < tt.waits || took > tt.waits+time.Second {
					t.Errorf("waited %s, want %s", took, tt.waits)
				}
				if asked := w.broker.count(); asked > 2 {
					t.Errorf("asked %d times", asked)
				}
			})
		})
	}
}

// authorizer answers every question alike.
type authorizer func() *controlv1.AuthorizeResponse

// Authorize answers.
func (a authorizer) Authorize(context.Context, *connect.Request[controlv1.AuthorizeRequest]) (*connect.Response[controlv1.AuthorizeResponse], error) {
	return connect.NewResponse(a()), nil
}

func TestConcurrentOpensShareOneQuestion(t *testing.T) {
	w := newWorld(t, newSite(t))
	hold := make(chan struct{})
	w.broker.set(func(b *broker) { b.hold = hold })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := w.echo(t, wiki); err != nil {
				t.Error(err)
			}
		})
	}
	close(hold)
	wg.Wait()
	if got := w.broker.count(); got > 2 {
		t.Errorf("asked %d times", got)
	}
}

func TestAnotherConnectorOnlyWhenNotDialled(t *testing.T) {
	first, second := newSite(t), newSite(t)
	w := newWorld(t, first, second)
	first.set(func(s *site) { s.dial = frame.NotDialled })
	if err := w.echo(t, wiki); err != nil || second.count() != 1 {
		t.Fatalf("not dialled: %v, second dialled %d times", err, second.count())
	}
	first.set(func(s *site) { s.dial = frame.Refused })
	if err := w.echo(t, wiki); frame.CodeOf(err) != frame.Refused || second.count() != 1 {
		t.Errorf("refused by the app: %v, second dialled %d times", err, second.count())
	}
}

func TestConnectorThatCannotBeReachedIsPassedOver(t *testing.T) {
	first, second := newSite(t), newSite(t)
	first.set(func(s *site) { s.down = true })
	w := newWorld(t, first, second)
	if err := w.echo(t, wiki); err != nil || second.count() != 1 {
		t.Errorf("%v, second dialled %d times", err, second.count())
	}
}

func TestChangedConnectorIsRefused(t *testing.T) {
	s := newSite(t)
	w := newWorld(t, s)
	w.pins[s.id] = ids.KeyIDOf([]byte("the old key"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := w.OpenTCP(ctx, wiki, 80)
	if err == nil || s.count() != 0 {
		t.Errorf("a connector with another key was used: %v", err)
	}
}

func TestRefusedGrantIsAskedForAgain(t *testing.T) {
	s := newSite(t)
	w := newWorld(t, s)
	if err := w.echo(t, wiki); err != nil {
		t.Fatal(err)
	}
	s.set(func(s *site) { s.dial = frame.Revoked })
	w.broker.set(func(b *broker) { b.deny = true })
	var denied *tunnels.DeniedError
	if err := w.echo(t, wiki); !errors.As(err, &denied) {
		t.Errorf("revoked, then denied: %v", err)
	}
}

func TestEndedGrantCutsItsFlows(t *testing.T) {
	w := newWorld(t, newSite(t))
	f, err := w.OpenTCP(t.Context(), wiki, 80)
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.OpenTCP(t.Context(), session.App{ID: "app_other"}, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w.Ended([]string{w.grantOf(t, wiki)}, &controlv1.Receipt{Id: "A", Verdict: controlv1.Verdict_VERDICT_DENY, AppName: "wiki"})
	<-f.Done()
	if f.Err() == nil {
		t.Error("the flow ended as if nothing had happened")
	}
	if _, err := other.Write([]byte("x")); err != nil {
		t.Errorf("another app's flow was cut: %v", err)
	}
	if w.Refused().GetId() != "A" {
		t.Error("the receipt is not kept")
	}
}

func TestSignedOutEndsEverything(t *testing.T) {
	w := newWorld(t, newSite(t))
	f, err := w.OpenTCP(t.Context(), wiki, 80)
	if err != nil {
		t.Fatal(err)
	}
	w.EndAll()
	<-f.Done()
	w.broker.set(func(b *broker) {
		b.err = connect.NewError(connect.CodeFailedPrecondition, errors.New("nobody"))
	})
	if err := w.echo(t, wiki); err == nil {
		t.Error("opened without a session")
	}
}

func TestWaysStartAtDifferentRelays(t *testing.T) {
	for n, want := range map[int]map[string]int{
		0: {"quic-1": -1, "tls-1": -1, "quic-2": -1, "tls-2": -1},
		1: {"quic-1": 0, "tls-1": 0, "quic-2": -1, "tls-2": -1},
		2: {"quic-1": 0, "tls-1": 1, "quic-2": 1, "tls-2": 0},
	} {
		if diff := cmp.Diff(want, tunnels.PicksForTest(n, false)); diff != "" {
			t.Errorf("%d relays: %s", n, diff)
		}
	}
	if diff := cmp.Diff(map[string]int{"tls-1": 0, "tls-2": -1}, tunnels.PicksForTest(1, true)); diff != "" {
		t.Errorf("behind a proxy: %s", diff)
	}
}
