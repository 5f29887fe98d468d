package controlapi

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/proto/ids"
)

func TestTheSameQuestionHasOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := newTurns()
		key := asked{"dev_a", "app_a"}
		inside, most, answers := 0, 0, 0
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				leave, err := all.enter(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				defer leave()
				inside++ // the race detector sees it if the turn is not one
				most = max(most, inside)
				<-time.After(time.Millisecond) // fake time: the others wait here
				inside--
				answers++
			})
		}
		for _, other := range []asked{{"dev_a", "app_b"}, {"dev_b", "app_a"}} {
			leave, err := all.enter(t.Context(), other)
			if err != nil {
				t.Fatalf("another question waits: %v", err)
			}
			leave()
		}
		wg.Wait()
		if most != 1 || answers != 50 || len(all.byKey) != 0 {
			t.Errorf("%d at once, %d answers, %d turns left", most, answers, len(all.byKey))
		}
	})
}

func TestWhoWaitsForATurnGoesWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := newTurns()
		leave, err := all.enter(t.Context(), asked{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := all.enter(ctx, asked{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("entered a turn that is held: %v", err)
		}
		leave()
		if leave, err = all.enter(t.Context(), asked{}); err != nil {
			t.Fatalf("the turn is lost: %v", err)
		}
		leave()
	})
}

func TestADeviceThatAsksTooOftenIsRefused(t *testing.T) {
	b, now := newBuckets(), time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	for n := range askBurst {
		if err := b.take("dev_a", now); err != nil {
			t.Fatalf("question %d: %v", n, err)
		}
	}
	err := b.take("dev_a", now)
	if err == nil || refusalOf(err).code != connect.CodeResourceExhausted {
		t.Errorf("one more: %v, want resource_exhausted", err)
	}
	if err := b.take("dev_b", now); err != nil {
		t.Errorf("another device: %v", err)
	}
	if err := b.take("dev_a", now.Add(time.Second)); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestFullBucketsAreDropped(t *testing.T) {
	b, now := newBuckets(), time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	for n := range keptBuckets {
		if err := b.take(ids.DeviceID(strconv.Itoa(n)), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.take("dev_a", now.Add(time.Minute)); err != nil || len(b.device) != 1 {
		t.Errorf("%d buckets are kept, %v", len(b.device), err)
	}
}
