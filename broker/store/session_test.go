package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/ids"
)

func signIn(t *testing.T, m *session.Sessions, user ids.UserID, device ids.DeviceID) session.Session {
	t.Helper()
	s, _, err := m.Create(t.Context(), session.Session{
		User: user, Device: device, DeviceKey: identity(string(device)).Key, ACR: "mfa", AMR: []string{"pwd", "otp"},
		AuthTime: day, MaxAge: 12 * time.Hour, Idle: time.Hour, Source: "192.0.2.1",
	}, day)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSessionLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		st := open()
		m := session.New(st)
		s := signIn(t, m, "usr_ann", "dev_1")
		got, err := session.New(open()).Session(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, got); diff != "" {
			t.Errorf("session after a restart (-want +got):\n%s", diff)
		}
		if _, err := m.Use(t.Context(), s.ID, s.DeviceKey, day.Add(time.Minute)); err != nil {
			t.Errorf("Use by its device: %v", err)
		}
		if _, err := m.Use(t.Context(), s.ID, identity("thief").Key, day); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("Use by another key = %v, want ErrNotFound", err)
		}
		before := version(t, st)
		if got, err := m.Move(t.Context(), s.ID, "2001:db8::7"); err != nil || got.Source != "2001:db8::7" || version(t, st) == before {
			t.Errorf("Move = %+v, %v, and it must be a change", got, err)
		}
		if got, err := m.Session(t.Context(), s.ID); err != nil || got.Source != "2001:db8::7" || got.LastActive != s.LastActive {
			t.Errorf("after the move: %+v, %v", got, err)
		}
		before = version(t, st)
		if err := m.Touch(t.Context(), s.ID, day.Add(time.Minute)); err != nil || version(t, st) != before {
			t.Errorf("Touch = %v, and it must not be a change", err)
		}
		if _, err := m.End(t.Context(), s.ID, session.CauseAdmin, day); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Use(t.Context(), s.ID, s.DeviceKey, day); !errors.Is(err, session.ErrEnded) {
			t.Errorf("Use after the end = %v, want ErrEnded", err)
		}
		if got, err := m.End(t.Context(), s.ID, session.CauseIdle, day); err != nil || got.EndCause != session.CauseAdmin {
			t.Errorf("the second end = %s, %v, want the first cause", got.EndCause, err)
		}
		if _, err := m.StepUp(t.Context(), s.ID, "x", nil, day); !errors.Is(err, session.ErrEnded) {
			t.Errorf("StepUp after the end = %v, want ErrEnded", err)
		}
		if _, err := m.Move(t.Context(), s.ID, "192.0.2.9"); !errors.Is(err, session.ErrEnded) {
			t.Errorf("Move after the end = %v, want ErrEnded", err)
		}
		if err := m.Touch(t.Context(), s.ID, day); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("Touch after the end = %v, want ErrNotFound", err)
		}
	})
}

func TestSecondSignInReplaces(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		m := session.New(open())
		first, other := signIn(t, m, "usr_ann", "dev_1"), signIn(t, m, "usr_ben", "dev_1")
		signIn(t, m, "usr_ann", "dev_1")
		if got, err := m.Session(t.Context(), first.ID); err != nil || got.EndCause != session.CauseReplaced {
			t.Errorf("first session: %q, %v, want replaced", got.EndCause, err)
		}
		if got, err := m.Session(t.Context(), other.ID); err != nil || !got.EndedAt.IsZero() {
			t.Errorf("session of the other user of the device: %v, %v, want live", got.EndedAt, err)
		}
	})
}

func TestEndMany(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		m := session.New(open())
		a1, a2 := signIn(t, m, "usr_ann", "dev_1"), signIn(t, m, "usr_ann", "dev_2")
		b1, c3 := signIn(t, m, "usr_ben", "dev_1"), signIn(t, m, "usr_cle", "dev_3")
		live := func() map[ids.SessionID]bool {
			t.Helper()
			list, err := m.List(t.Context(), session.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			out := map[ids.SessionID]bool{}
			for _, s := range list {
				out[s.ID] = true
			}
			return out
		}
		if ended, err := m.EndDevice(t.Context(), "dev_1", session.CauseDeviceBlocked, day); err != nil || len(ended) != 2 {
			t.Fatalf("EndDevice ended %v, %v", ended, err)
		}
		if diff := cmp.Diff(map[ids.SessionID]bool{a2.ID: true, c3.ID: true}, live()); diff != "" {
			t.Errorf("live after EndDevice: %s", diff)
		}
		if ended, err := m.EndUser(t.Context(), "usr_ann", session.CauseUserDisabled, day); err != nil || len(ended) != 1 {
			t.Errorf("EndUser ended %v, %v", ended, err)
		}
		if _, err := m.EndUser(t.Context(), "", session.CauseAdmin, day); err == nil {
			t.Error("EndUser without a user ended everybody")
		}
		if ended, err := m.EndAll(t.Context(), session.CauseRestore, day); err != nil || len(ended) != 1 || len(live()) != 0 {
			t.Errorf("EndAll ended %v, %v", ended, err)
		}
		all, err := m.List(t.Context(), session.Filter{Ended: true})
		if err != nil || len(all) != 4 {
			t.Errorf("%d sessions with the ended ones, %v, want 4 (%s %s)", len(all), err, a1.ID, b1.ID)
		}
		if n, err := m.Drop(t.Context(), day.Add(time.Hour)); err != nil || n != 4 {
			t.Errorf("Drop = %d, %v, want 4", n, err)
		}
	})
}

func TestEndDue(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		m := session.New(open())
		idle, active := signIn(t, m, "usr_ann", "dev_1"), signIn(t, m, "usr_ben", "dev_2")
		if err := m.Touch(t.Context(), active.ID, day.Add(59*time.Minute)); err != nil {
			t.Fatal(err)
		}
		if ended, err := m.EndDue(t.Context(), day.Add(time.Hour-time.Second)); err != nil || len(ended) != 0 {
			t.Errorf("before the limit: %v, %v", ended, err)
		}
		ended, err := m.EndDue(t.Context(), day.Add(time.Hour))
		if err != nil || len(ended) != 1 || ended[0].ID != idle.ID || ended[0].EndCause != session.CauseIdle {
			t.Errorf("at the idle limit: %v, %v", ended, err)
		}
	})
}

func TestStepUpAndMarks(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		m := session.New(open())
		s := signIn(t, m, "usr_ann", "dev_1")
		if got, err := m.StepUp(t.Context(), s.ID, "hwk", []string{"hwk"}, day.Add(time.Hour)); err != nil || got.ACR != "hwk" {
			t.Errorf("StepUp = %q, %v", got.ACR, err)
		}
		if _, err := m.StepUp(t.Context(), s.ID, "mfa", nil, day); !errors.Is(err, session.ErrInvalid) {
			t.Errorf("StepUp to an older authentication = %v, want ErrInvalid", err)
		}
		if _, err := m.SetStale(t.Context(), s.ID, session.IdentityStale, true); err != nil {
			t.Fatal(err)
		}
		got, err := m.Verified(t.Context(), s.ID, day.Add(2*time.Hour))
		if err != nil || len(got.Stale) != 0 || !got.LastVerified.Equal(day.Add(2*time.Hour)) {
			t.Errorf("Verified = %v at %v, %v", got.Stale, got.LastVerified, err)
		}
	})
}
