package tunnels_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
)

// A program hears within seconds that no connector is there, however many there are.
func TestOpenEndsSoonWhenConnectorsAreAway(t *testing.T) {
	for _, n := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			var sites []*site
			for range n {
				s := newSite(t)
				s.set(func(s *site) { s.down = true })
				sites = append(sites, s)
			}
			w := newWorld(t, sites...)
			began := time.Now()
			if err := w.echo(t, wiki); !errors.Is(err, link.ErrNoCarrier) {
				t.Errorf("%d connectors away: %v", n, err)
			}
			if took := time.Since(began); took > 5100*time.Millisecond {
				t.Errorf("%d connectors away: it took %s", n, took)
			}
		})
	}
}

func TestPingSaysThatTheConnectorIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		w := newWorld(t, s)
		s.set(func(s *site) { s.down = true })
		legs, err := w.Ping(t.Context(), wiki, 80)
		if err != nil || len(legs) != 2 || !errors.Is(legs[1].Err, link.ErrNoCarrier) {
			t.Errorf("%v, %+v", err, legs)
		}
	})
}

func TestPingSaysWhatTheAppSaid(t *testing.T) {
	s := newSite(t)
	w := newWorld(t, s)
	s.set(func(s *site) { s.dial = frame.Refused })
	legs, err := w.Ping(t.Context(), wiki, 80)
	if err != nil || len(legs) != 3 || frame.CodeOf(legs[2].Err) != frame.Refused {
		t.Errorf("%v, %+v", err, legs)
	}
}

// An open that is under way ends too when its connector goes; a reached one has its time.
func TestOpenUnderWayEndsWhenTheConnectorGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := tunnels.WhileReachedForTest(t.Context(), 0)
		defer stop()
		began := time.Now()
		<-ctx.Done()
		if took := time.Since(began); took < 4*time.Second || took > 6*time.Second || !errors.Is(context.Cause(ctx), link.ErrNoCarrier) {
			t.Errorf("after %s: %v", took, context.Cause(ctx))
		}
		ctx, stop = tunnels.WhileReachedForTest(t.Context(), 1)
		defer stop()
		select {
		case <-ctx.Done():
			t.Error("a connector that is reached was given up")
		case <-time.After(time.Minute):
		}
	})
}
