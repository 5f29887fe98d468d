package clock_test

import (
	"testing"
	"time"

	"github.com/postern-zt/postern/platform/clock"
)

func TestDeadlineEndsWithEitherClock(t *testing.T) {
	start := clock.Time{Wall: time.Unix(1000, 0), Boot: time.Hour}
	d := start.DeadlineAfter(time.Minute)
	cases := map[string]struct {
		at   clock.Time
		want bool
	}{
		"at once":                          {start, false},
		"59 s later":                       {start.Add(59 * time.Second), false},
		"60 s later":                       {start.Add(time.Minute), true},
		"suspended, wall set back":         {clock.Time{Wall: start.Wall.Add(-time.Hour), Boot: start.Boot + 2*time.Minute}, true},
		"wall jumps ahead":                 {clock.Time{Wall: start.Wall.Add(time.Hour), Boot: start.Boot}, true},
		"wall set back, boot still inside": {clock.Time{Wall: start.Wall.Add(-time.Hour), Boot: start.Boot + time.Second}, false},
	}
	for name, c := range cases {
		if got := d.Passed(c.at); got != c.want {
			t.Errorf("%s: Passed = %v, want %v", name, got, c.want)
		}
	}
	if !(clock.Deadline{}).Passed(start) {
		t.Error("the zero deadline has not passed")
	}
	if got := d.Until(start.Add(20 * time.Second)); got != 40*time.Second {
		t.Errorf("Until = %v, want 40s", got)
	}
}

func TestNowMovesForward(t *testing.T) {
	a := clock.Now()
	if b := clock.Now(); b.Boot < a.Boot || a.Boot <= 0 {
		t.Errorf("boot clock went from %v to %v", a.Boot, b.Boot)
	}
}
