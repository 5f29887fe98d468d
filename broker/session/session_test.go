package session_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/session"
	"github.com/postern-zt/postern/proto/ids"
)

var (
	day   = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	key   = ids.KeyIDOf([]byte("laptop"))
	thief = ids.KeyIDOf([]byte("thief"))
)

func live(id ids.SessionID, user ids.UserID, device ids.DeviceID) *session.Session {
	return &session.Session{
		ID: id, User: user, Device: device, DeviceKey: key, AuthTime: day, Created: day,
		LastActive: day, LastVerified: day, MaxAge: 8 * time.Hour, Idle: time.Hour,
	}
}

func TestLive(t *testing.T) {
	idle := live("s", "u", "d")
	idle.LastActive = day.Add(7*time.Hour + 30*time.Minute)
	ended := live("s", "u", "d")
	ended.EndedAt, ended.EndCause = day, session.CauseAdmin
	endless := &session.Session{DeviceKey: key, Created: day}
	cases := []struct {
		name string
		s    *session.Session
		key  ids.KeyID
		at   time.Time
		want error
	}{
		{"fresh", live("s", "u", "d"), key, day, nil},
		{"other key", live("s", "u", "d"), thief, day, session.ErrNotFound},
		{"no key", live("s", "u", "d"), ids.KeyID{}, day, session.ErrNotFound},
		{"no key on both sides", &session.Session{}, ids.KeyID{}, day, session.ErrNotFound},
		{"just before idle", live("s", "u", "d"), key, day.Add(time.Hour - 1), nil},
		{"idle", live("s", "u", "d"), key, day.Add(time.Hour), session.ErrEnded},
		{"just before max age", idle, key, day.Add(8*time.Hour - 1), nil},
		{"max age", idle, key, day.Add(8 * time.Hour), session.ErrEnded},
		{"ended", ended, key, day, session.ErrEnded},
		{"no limits", endless, key, day.Add(1000 * time.Hour), nil},
	}
	for _, c := range cases {
		if err := c.s.Live(c.key, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: Live = %v, want %v", c.name, err, c.want)
		}
	}
}

func TestNext(t *testing.T) {
	s := live("s", "u", "d")
	cases := []struct {
		name     string
		active   time.Duration
		reverify time.Duration
		want     session.Deadline
	}{
		{"idle first", 0, 0, session.Deadline{Session: "s", At: day.Add(time.Hour), End: session.CauseIdle}},
		{"verify first", 0, 15 * time.Minute, session.Deadline{Session: "s", At: day.Add(15 * time.Minute)}},
		{"age first", 7*time.Hour + 30*time.Minute, 9 * time.Hour, session.Deadline{Session: "s", At: day.Add(8 * time.Hour), End: session.CauseMaxAge}},
	}
	for _, c := range cases {
		s.LastActive = day.Add(c.active)
		got, ok := s.Next(c.reverify)
		if diff := cmp.Diff(c.want, got); diff != "" || !ok {
			t.Errorf("%s: Next = %v, %v, want %v", c.name, got, ok, c.want)
		}
	}
	if d, ok := (&session.Session{Created: day}).Next(0); ok {
		t.Errorf("a session without limits has a deadline %v", d)
	}
	later := live("later", "u", "d")
	later.LastActive = day.Add(2 * time.Hour)
	s.LastActive = day
	if got, ok := session.NextOf([]*session.Session{later, s}, 0); !ok || got.Session != "s" {
		t.Errorf("NextOf = %v, %v, want the deadline of s", got, ok)
	}
}

func TestTouched(t *testing.T) {
	gone := live("gone", "ann", "d1")
	gone.EndedAt = day
	all := []*session.Session{live("s1", "ann", "d1"), live("s2", "ben", "d1"), live("s3", "ann", "d2"), gone}
	uses := session.View{Uses: func(s ids.SessionID, app ids.AppID) bool { return s == "s2" && app == "wiki" }}
	cases := []struct {
		name string
		e    session.Event
		view session.View
		want []ids.SessionID
	}{
		{"whole policy", session.Event{Kind: session.PolicyPublished}, uses, []ids.SessionID{"s1", "s2", "s3"}},
		{"policy about an app", session.Event{Kind: session.PolicyPublished, Apps: []ids.AppID{"wiki"}}, uses, []ids.SessionID{"s2"}},
		{"policy about an unused app", session.Event{Kind: session.PolicyPublished, Apps: []ids.AppID{"git"}}, uses, nil},
		{"user", session.Event{Kind: session.UserChanged, Users: []ids.UserID{"ann"}}, uses, []ids.SessionID{"s1", "s3"}},
		{"group", session.Event{Kind: session.GroupChanged, Users: []ids.UserID{"ben", "eve"}}, uses, []ids.SessionID{"s2"}},
		{"device", session.Event{Kind: session.DeviceChanged, Devices: []ids.DeviceID{"d1"}}, uses, []ids.SessionID{"s1", "s2"}},
		{"facts", session.Event{Kind: session.FactsChanged, Devices: []ids.DeviceID{"d2"}}, uses, []ids.SessionID{"s3"}},
		{"app", session.Event{Kind: session.AppChanged, Apps: []ids.AppID{"wiki"}}, uses, []ids.SessionID{"s2"}},
		{"app without a view", session.Event{Kind: session.AppChanged, Apps: []ids.AppID{"git"}}, session.View{}, []ids.SessionID{"s1", "s2", "s3"}},
		{"schedule", session.Event{Kind: session.ScheduleEnded, Apps: []ids.AppID{"wiki"}}, uses, []ids.SessionID{"s2"}},
		{"session", session.Event{Kind: session.SessionChanged, Sessions: []ids.SessionID{"s3"}}, uses, []ids.SessionID{"s3"}},
		{"unknown kind", session.Event{Kind: "weather", Users: []ids.UserID{"nobody"}}, uses, []ids.SessionID{"s1", "s2", "s3"}},
	}
	for _, c := range cases {
		var got []ids.SessionID
		for _, s := range session.Touched(c.e, all, c.view) {
			got = append(got, s.ID)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestMark(t *testing.T) {
	marks := session.Mark(nil, session.IdentityStale, true)
	marks = session.Mark(marks, session.FactsStale, true)
	marks = session.Mark(marks, session.FactsStale, true)
	if diff := cmp.Diff([]session.Stale{session.FactsStale, session.IdentityStale}, marks); diff != "" {
		t.Errorf("marks: %s", diff)
	}
	if got := session.Mark(marks, session.FactsStale, false); len(got) != 1 || len(marks) != 2 {
		t.Errorf("Mark took %v from %v", got, marks)
	}
}
