package policy_test

import (
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/policy"
)

func berlin(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func days() []time.Weekday { return []time.Weekday{0, 1, 2, 3, 4, 5, 6} }

// TestSchedule checks boundaries, the days on which the clock changes, and the known end.
func TestSchedule(t *testing.T) {
	early := policy.Schedule{Zone: "Europe/Berlin", Windows: []policy.Window{{Days: days(), From: 60, To: 4 * 60}}}
	night := policy.Schedule{Zone: "Europe/Berlin", Windows: []policy.Window{{Days: []time.Weekday{time.Friday}, From: 22 * 60, To: 6 * 60}}}
	gap := policy.Schedule{Zone: "Europe/Berlin", Windows: []policy.Window{{Days: days(), From: 2*60 + 30, To: 5 * 60}}}
	split := policy.Schedule{Zone: "Europe/Berlin", Windows: []policy.Window{
		{Days: days(), From: 9 * 60, To: 12 * 60}, {Days: days(), From: 12 * 60, To: 17 * 60}}}
	always := policy.Schedule{Zone: "UTC", Windows: []policy.Window{{Days: days(), From: 0, To: 24 * 60}}}
	for name, c := range map[string]struct {
		s     policy.Schedule
		at    string
		open  bool
		until string // empty: not checked
	}{
		"I23/one second before nine":  {office(), "2026-11-18T08:59:59+01:00", false, "2026-11-18T09:00:00+01:00"},
		"I23/nine sharp":              {office(), "2026-11-18T09:00:00+01:00", true, "2026-11-18T17:00:00+01:00"},
		"I23/one second before five":  {office(), "2026-11-18T16:59:59+01:00", true, "2026-11-18T17:00:00+01:00"},
		"I23/five sharp":              {office(), "2026-11-18T17:00:00+01:00", false, "2026-11-19T09:00:00+01:00"},
		"friday evening":              {office(), "2026-11-20T18:00:00+01:00", false, "2026-11-23T09:00:00+01:00"},
		"weekend":                     {office(), "2026-11-21T12:00:00+01:00", false, "2026-11-23T09:00:00+01:00"},
		"another zone's nine":         {office(), "2026-11-18T09:00:00Z", true, "2026-11-18T16:00:00Z"},
		"monday after spring forward": {office(), "2026-03-30T09:00:00+02:00", true, "2026-03-30T17:00:00+02:00"},
		"monday after, winter's nine": {office(), "2026-03-30T08:59:59+02:00", false, ""},
		"spring: five hours less one": {early, "2026-03-29T00:00:00Z", true, "2026-03-29T02:00:00Z"},
		"autumn: first two o'clock":   {early, "2026-10-25T00:30:00Z", true, "2026-10-25T03:00:00Z"},
		"autumn: second two o'clock":  {early, "2026-10-25T01:30:00Z", true, "2026-10-25T03:00:00Z"},
		"autumn: after four":          {early, "2026-10-25T03:00:00Z", false, ""},
		"skipped start, before":       {gap, "2026-03-29T00:29:59Z", false, ""},
		"skipped start, well after":   {gap, "2026-03-29T02:00:00Z", true, "2026-03-29T03:00:00Z"},
		"over midnight, friday":       {night, "2026-11-20T23:00:00+01:00", true, "2026-11-21T06:00:00+01:00"},
		"over midnight, saturday":     {night, "2026-11-21T05:59:59+01:00", true, "2026-11-21T06:00:00+01:00"},
		"over midnight, sunday":       {night, "2026-11-22T05:00:00+01:00", false, "2026-11-27T22:00:00+01:00"},
		"adjoining windows are one":   {split, "2026-11-18T11:59:00+01:00", true, "2026-11-18T17:00:00+01:00"},
		"always":                      {always, "2026-11-18T11:59:00Z", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := allow(1)
			r.Conditions.Schedule = "s"
			doc := policy.NewDocument()
			doc.Schedules, doc.Rules = map[string]policy.Schedule{"s": c.s}, []policy.Rule{r}
			rev := mustCompile(t, doc)
			in := input()
			in.App.Class, in.Device.Facts, in.Time = policy.Public, nil, berlin(t, c.at)
			in.Identity.SignedInAt, in.Identity.AuthTime = in.Time, in.Time
			d := rev.Decide(in)
			if d.Verdict.Grants() != c.open || has(d, policy.CodeSchedule) == c.open {
				t.Fatalf("%v %v, want open %v", d.Verdict, d.Reasons, c.open)
			}
			if c.until != "" {
				checkUntil(t, rev, in, berlin(t, c.until))
			}
		})
	}
}

// checkUntil: just before the end nothing has changed and the end is known; at it, it flips.
func checkUntil(t *testing.T, rev *policy.Revision, in policy.Input, until time.Time) {
	t.Helper()
	before := rev.Decide(in).Verdict.Grants()
	move := func(to time.Time) policy.Decision {
		in.Time = to
		in.Identity.SignedInAt, in.Identity.AuthTime = to, to
		return rev.Decide(in)
	}
	last := move(until.Add(-time.Second))
	if last.Verdict.Grants() != before || !last.ReEvaluateAt.Equal(until) {
		t.Errorf("a second before %v: %v, again at %v", until, last.Verdict, last.ReEvaluateAt)
	}
	if move(until).Verdict.Grants() == before {
		t.Errorf("at %v nothing changes", until)
	}
}

func TestScheduleRefuses(t *testing.T) {
	w := []policy.Window{{Days: days(), From: 60, To: 120}}
	for name, s := range map[string]policy.Schedule{
		"no zone":      {Windows: w},
		"unknown zone": {Zone: "Europe/Nowhere", Windows: w},
		"local zone":   {Zone: "Local", Windows: w},
		"no windows":   {Zone: "UTC"},
		"no days":      {Zone: "UTC", Windows: []policy.Window{{From: 1, To: 2}}},
		"day eight":    {Zone: "UTC", Windows: []policy.Window{{Days: []time.Weekday{8}, From: 1, To: 2}}},
		"hour 25":      {Zone: "UTC", Windows: []policy.Window{{Days: days(), From: 1, To: 25 * 60}}},
	} {
		doc := policy.NewDocument()
		doc.Schedules = map[string]policy.Schedule{"s": s}
		if _, err := policy.Compile(policy.Meta{}, doc); err == nil {
			t.Errorf("%s: compiles", name)
		}
	}
}

func TestClockTime(t *testing.T) {
	for s, want := range map[string]policy.ClockTime{"00:00": 0, "09:30": 570, "24:00": 1440, "24:01": -1, "9:30": -1, "09:60": -1, "-9:00": -1, "0a:00": -1, "": -1} {
		var c policy.ClockTime
		err := c.UnmarshalText([]byte(s))
		if (want < 0) != (err != nil) || (err == nil && c != want) {
			t.Errorf("UnmarshalText(%q) = %d, %v, want %d", s, c, err, want)
		}
	}
}
