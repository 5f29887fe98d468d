package admincli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// length is a duration on the command line: Go's form, and days as in "30d".
type length time.Duration

// UnmarshalText reads "90s", "12h", "30d".
func (l *length) UnmarshalText(text []byte) error {
	s := string(text)
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		d = time.Duration(n) * day
		if n > maxDays {
			err = strconv.ErrRange
		}
	}
	if err != nil || d < 0 {
		return fmt.Errorf("%q is not a length of time like 90s, 12h or 30d", s)
	}
	*l = length(d)
	return nil
}

// maxDays keeps a number of days inside of a duration.
const maxDays = 36500

func (l length) seconds() int64 { return int64(time.Duration(l) / time.Second) }

// moment is a time on the command line: a length back or ahead, a date, or a date and time.
type moment struct {
	offset length
	at     time.Time
}

// UnmarshalText reads "2h", "2026-03-01" or "2026-03-01T15:04:05Z".
func (m *moment) UnmarshalText(text []byte) error {
	if m.offset.UnmarshalText(text) == nil {
		return nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, string(text)); err == nil {
			m.at = t
			return nil
		}
	}
	return fmt.Errorf("%q is neither a length of time like 2h or 30d nor a time like 2026-03-01 or 2026-03-01T15:04:05Z", text)
}

// before is the moment, counted back from now; 0 when none was given.
func (m moment) before(now time.Time) int64 { return m.millis(now, -1) }

// after is the moment, counted ahead from now; 0 when none was given.
func (m moment) after(now time.Time) int64 { return m.millis(now, 1) }

func (m moment) millis(now time.Time, sign time.Duration) int64 {
	switch {
	case !m.at.IsZero():
		return m.at.UnixMilli()
	case m.offset > 0:
		return now.Add(sign * time.Duration(m.offset)).UnixMilli()
	default:
		return 0
	}
}
