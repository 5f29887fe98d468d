package policy

import (
	"fmt"
	"time"
	_ "time/tzdata" // schedules name time zones; hosts without a zone database decide the same
)

// maxWindows bounds a schedule.
const maxWindows = 32

// Schedule is a weekly set of windows in one time zone. A window is half open: 09:00 is in,
// 17:00 is out. A window whose end is not after its start runs into the next day; equal ends
// mean the whole day round. Ends are civil times: on a day when the clock skips or repeats
// one, the window is as much shorter or longer as the day is.
type Schedule struct {
	Zone    string   `json:"zone"` // IANA name, "Europe/Berlin"
	Windows []Window `json:"windows"`
}

// Window is one interval on each of its days.
type Window struct {
	Days []time.Weekday `json:"days"` // Sunday is 0
	From ClockTime      `json:"from"`
	To   ClockTime      `json:"to"`
}

// ClockTime is a time of day in minutes after midnight, 0 to 1440, written "09:00".
type ClockTime int

// MarshalText writes "09:00".
func (c ClockTime) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%02d:%02d", int(c)/60, int(c)%60), nil
}

// UnmarshalText reads "09:00" to "24:00".
func (c *ClockTime) UnmarshalText(b []byte) error {
	if len(b) != 5 || b[2] != ':' {
		return fmt.Errorf("malformed time of day %.16q", b)
	}
	for _, i := range []int{0, 1, 3, 4} {
		if b[i] < '0' || b[i] > '9' {
			return fmt.Errorf("malformed time of day %.16q", b)
		}
	}
	h, m := int(b[0]-'0')*10+int(b[1]-'0'), int(b[3]-'0')*10+int(b[4]-'0')
	if m > 59 || h*60+m > 24*60 {
		return fmt.Errorf("time of day %q is out of range", b)
	}
	*c = ClockTime(h*60 + m)
	return nil
}

// schedule is a Schedule with its zone loaded.
type schedule struct {
	loc     *time.Location
	windows []Window
}

func (s Schedule) compile() (*schedule, error) {
	if s.Zone == "" || s.Zone == "Local" {
		return nil, fmt.Errorf("schedule has no time zone")
	}
	loc, err := time.LoadLocation(s.Zone)
	if err != nil {
		return nil, fmt.Errorf("time zone %.64q is not known", s.Zone)
	}
	if len(s.Windows) == 0 || len(s.Windows) > maxWindows {
		return nil, fmt.Errorf("a schedule has 1 to %d windows", maxWindows)
	}
	for _, w := range s.Windows {
		if err := w.validate(); err != nil {
			return nil, err
		}
	}
	return &schedule{loc: loc, windows: s.Windows}, nil
}

func (w Window) validate() error {
	if len(w.Days) == 0 || len(w.Days) > 7 {
		return fmt.Errorf("a window has 1 to 7 days")
	}
	for _, d := range w.Days {
		if d < time.Sunday || d > time.Saturday {
			return fmt.Errorf("day %d is not a weekday", d)
		}
	}
	if w.From < 0 || w.From >= 24*60 || w.To < 0 || w.To > 24*60 {
		return fmt.Errorf("a window's times are out of range")
	}
	return nil
}

// at reports whether the schedule is open at t and when that next changes. Adjoining and
// overlapping windows are one.
func (s *schedule) at(t time.Time) (open bool, until time.Time) {
	until = t
	for range maxWindows { // each round crosses one adjoining window
		now, next := s.step(until)
		if until.Equal(t) {
			open = now
		}
		if now != open || next.IsZero() {
			break
		}
		until = next
	}
	if until.Equal(t) {
		until = t.Add(7 * 24 * time.Hour)
	}
	return open, until
}

// step reports whether any window holds t and the nearest boundary after t.
func (s *schedule) step(t time.Time) (open bool, next time.Time) {
	y, m, d := t.In(s.loc).Date()
	for day := -1; day <= 8; day++ {
		date := time.Date(y, m, d+day, 12, 0, 0, 0, s.loc)
		for _, w := range s.windows {
			if !w.on(date.Weekday()) {
				continue
			}
			from, to := w.instants(date)
			if !t.Before(from) && t.Before(to) {
				open = true
			}
			next = nearest(next, nearest(from, to, t), t)
		}
	}
	return open, next
}

func (w Window) on(d time.Weekday) bool {
	for _, x := range w.Days {
		if x == d {
			return true
		}
	}
	return false
}

func (w Window) instants(date time.Time) (from, to time.Time) {
	y, m, d := date.Date()
	from = time.Date(y, m, d, 0, int(w.From), 0, 0, date.Location())
	if w.To <= w.From {
		d++
	}
	return from, time.Date(y, m, d, 0, int(w.To), 0, 0, date.Location())
}

// nearest returns the earlier of a and b that lies after t, zero for neither.
func nearest(a, b, t time.Time) time.Time {
	switch {
	case !a.After(t):
		if b.After(t) {
			return b
		}
		return time.Time{}
	case !b.After(t), a.Before(b):
		return a
	default:
		return b
	}
}
