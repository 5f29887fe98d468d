package trust

import (
	"fmt"
	"slices"
	"time"
)

// Check says how one fact is damped and who may report it.
type Check struct {
	Name       FactName      `json:"name"`
	TTL        time.Duration `json:"ttl"`   // a report counts this long at most
	Grace      time.Duration `json:"grace"` // 0: a failure counts at once
	FlapLimit  int           `json:"flap_limit"`
	FlapWindow time.Duration `json:"flap_window"`
	FlapHold   time.Duration `json:"flap_hold"` // how long a flapping check must hold still
	Sources    []Source      `json:"sources"`   // who may speak for it; empty: nobody
}

func (c Check) accepts(s Source) bool { return slices.Contains(c.Sources, s) }

// Settings is the table by which facts become a level and a score. It is part of a policy
// revision, so that an old decision replays under the table of its day.
type Settings struct {
	Checks []Check `json:"checks"`
	// Levels[i] lists what level i+1 needs beyond the level below it.
	Levels [MaxLevel][]FactName `json:"levels"`
	// Weights gives the points of the score.
	Weights []Weight `json:"weights"`
}

// Weight is the number of points that a passing fact adds to the score.
type Weight struct {
	Fact   FactName `json:"fact"`
	Factor string   `json:"factor"` // the word in receipts: "os-updated"
	Points int      `json:"points"`
}

// DefaultSettings returns the table of a new installation.
func DefaultSettings() Settings {
	s := Settings{
		Levels: [MaxLevel][]FactName{
			{ClientVersion, OSSupported},
			{MDMEnrolled, DiskEncrypted},
			{PatchLevel, Antivirus, KeyInHardware},
		},
		Weights: []Weight{
			{OSSupported, "os-updated", 25},
			{DiskEncrypted, "encrypted", 25},
			{MDMEnrolled, "mdm-enrolled", 25},
			{ScreenLock, "screen-lock-enabled", 25},
		},
	}
	for _, n := range FactNames() {
		s.Checks = append(s.Checks, defaultCheck(n))
	}
	return s
}

// defaultCheck: five minutes of silence make a fact unknown; slow-moving facts have a grace
// in which the employee can act, and the firewall has none because its loss is exposure now.
func defaultCheck(n FactName) Check {
	c := Check{Name: n, TTL: 5 * time.Minute, FlapLimit: 3, FlapWindow: 10 * time.Minute,
		FlapHold: time.Minute, Sources: []Source{SourceClient, SourceBroker}}
	switch n {
	case OSVersion, OSSupported, ClientVersion, PatchLevel:
		c.Grace = 24 * time.Hour
	case Antivirus, ScreenLock:
		c.Grace = 10 * time.Minute
	case MDMEnrolled:
		c.TTL, c.Sources = time.Hour, []Source{SourceMDM}
	case KeyInHardware:
		c.TTL, c.Sources = 7*24*time.Hour, []Source{SourceBroker}
	}
	return c
}

// check returns the row of a fact; an unlisted fact accepts no source and never counts.
func (s Settings) check(n FactName) Check {
	for _, c := range s.Checks {
		if c.Name == n {
			return c
		}
	}
	return Check{Name: n}
}

// Assessment is what a device amounts to at one moment.
type Assessment struct {
	Level        Level
	Score        int
	Factors      []string        // what made the score
	Missing      []FactName      // what the next level still needs
	Checks       map[string]bool // every check of the settings by name
	Compliant    bool            // all checks that any level needs pass
	LastChecked  time.Time       // the newest observation
	ReEvaluateAt time.Time       // when time alone may change the answer; zero: never
}

// Views returns the views of all facts at now, in the order of FactNames, and when the first
// of them may change.
func (s Settings) Views(facts []Fact, now time.Time) ([]View, time.Time) {
	var out []View
	var at time.Time
	for _, n := range FactNames() {
		i := slices.IndexFunc(facts, func(f Fact) bool { return f.Name == n })
		if i < 0 {
			continue
		}
		v, t := s.View(facts[i], now)
		out, at = append(out, v), First(at, t)
	}
	return out, at
}

// First returns the earlier of two times where zero means never.
func First(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// Assess computes level and score from views at now. A device that is not registered has
// level 0 and score 0 whatever it reports.
func (s Settings) Assess(registered bool, views []View, now time.Time) Assessment {
	a := Assessment{Checks: make(map[string]bool, len(s.Checks))}
	pass := func(n FactName) bool { return false }
	if registered {
		pass = passing(views, now)
	}
	for _, v := range views {
		if v.ObservedAt.After(a.LastChecked) {
			a.LastChecked = v.ObservedAt
		}
		a.ReEvaluateAt = First(a.ReEvaluateAt, v.At(now).ChangesAt())
	}
	for _, c := range s.Checks {
		a.Checks[string(c.Name)] = pass(c.Name)
	}
	a.Level, a.Missing = s.level(registered, pass)
	a.Score, a.Factors = s.score(registered, pass)
	a.Compliant = registered && a.Level == MaxLevel
	return a
}

func passing(views []View, now time.Time) func(FactName) bool {
	return func(n FactName) bool {
		for i := range views {
			if views[i].Name == n {
				return views[i].At(now).State.Passes()
			}
		}
		return false
	}
}

// level climbs while everything a level needs passes. The top level always needs a key in
// hardware, whatever the table says.
func (s Settings) level(registered bool, pass func(FactName) bool) (Level, []FactName) {
	if !registered {
		return LevelUnknown, nil
	}
	for l := LevelUnknown; l < MaxLevel; l++ {
		need := s.Levels[l]
		if l+1 == MaxLevel && !slices.Contains(need, KeyInHardware) {
			need = append(slices.Clone(need), KeyInHardware)
		}
		var missing []FactName
		for _, n := range need {
			if !pass(n) {
				missing = append(missing, n)
			}
		}
		if len(missing) > 0 {
			return l, missing
		}
	}
	return MaxLevel, nil
}

func (s Settings) score(registered bool, pass func(FactName) bool) (int, []string) {
	if !registered {
		return 0, []string{"unregistered"}
	}
	score, factors := 0, []string{}
	for _, w := range s.Weights {
		if pass(w.Fact) {
			score += max(w.Points, 0)
			factors = append(factors, w.Factor)
		}
	}
	return min(score, MaxScore), factors
}

// Validate reports what is wrong with the table.
func (s Settings) Validate() error {
	for _, c := range s.Checks {
		if c.TTL <= 0 || c.Grace < 0 || c.FlapHold < 0 || c.FlapWindow < 0 || c.FlapLimit < 0 {
			return fmt.Errorf("trust: check %.64q has no TTL or a negative setting", c.Name)
		}
	}
	for _, needs := range s.Levels {
		for _, n := range needs {
			if !slices.Contains(FactNames(), n) {
				return fmt.Errorf("trust: a level needs the unknown fact %.64q", n)
			}
		}
	}
	if len(s.Levels[0]) == 0 {
		return fmt.Errorf("trust: level 1 needs no fact, so every device would be known")
	}
	for _, w := range s.Weights {
		if !slices.Contains(FactNames(), w.Fact) || w.Points < 0 || w.Points > MaxScore {
			return fmt.Errorf("trust: weight of %.64q is unknown or out of range", w.Fact)
		}
	}
	return nil
}
