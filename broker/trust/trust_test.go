package trust_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/trust"
)

var noon = time.Date(2026, 11, 18, 12, 0, 0, 0, time.UTC)

func after(d time.Duration) time.Time { return noon.Add(d) }

func report(n trust.FactName, s trust.State, at time.Time) trust.Report {
	return trust.Report{Name: n, State: s, ObservedAt: at, Source: trust.SourceClient}
}

func views(names ...trust.FactName) []trust.View {
	var out []trust.View
	for _, n := range names {
		out = append(out, trust.View{Name: n, State: trust.StatePass, ObservedAt: noon, ExpiresAt: after(time.Minute)})
	}
	return out
}

// TestLevels walks up the levels, fact by fact.
func TestLevels(t *testing.T) {
	s := trust.DefaultSettings()
	var have []trust.FactName
	for _, c := range []struct {
		name  string
		add   trust.FactName
		level trust.Level
		score int
	}{
		{"D1/nothing known", "", trust.LevelUnknown, 0},
		{"D2/half of the basic checks", trust.ClientVersion, trust.LevelUnknown, 0},
		{"D2/basic checks", trust.OSSupported, trust.LevelKnown, 25},
		{"D3/managed, not encrypted", trust.MDMEnrolled, trust.LevelKnown, 50},
		{"D3/managed", trust.DiskEncrypted, trust.LevelManaged, 75},
		{"D9/screen lock", trust.ScreenLock, trust.LevelManaged, 100},
		{"D4/patched", trust.PatchLevel, trust.LevelManaged, 100},
		{"D4/protected", trust.Antivirus, trust.LevelManaged, 100},
		{"D4/key in hardware", trust.KeyInHardware, trust.LevelCompliant, 100},
	} {
		if c.add != "" {
			have = append(have, c.add)
		}
		t.Run(c.name, func(t *testing.T) {
			a := s.Assess(true, views(have...), noon)
			if a.Level != c.level || a.Score != c.score {
				t.Errorf("level %v score %d, want %v %d", a.Level, a.Score, c.level, c.score)
			}
			if off := s.Assess(false, views(have...), noon); off.Level != 0 || off.Score != 0 || off.Checks[string(trust.ClientVersion)] {
				t.Errorf("unregistered: %+v", off)
			}
			if late := s.Assess(true, views(have...), after(time.Minute)); late.Level != 0 || late.Score != 0 {
				t.Errorf("expired: level %v score %d, want nothing", late.Level, late.Score)
			}
		})
	}
	t.Run("D5/unregistered", func(t *testing.T) {
		if diff := cmp.Diff([]string{"unregistered"}, s.Assess(false, nil, noon).Factors); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("D19/result", func(t *testing.T) {
		a := s.Assess(true, views(have...), noon)
		if !a.Compliant || !a.LastChecked.Equal(noon) || !a.Checks[string(trust.Antivirus)] || a.Checks[string(trust.Firewall)] || !a.ReEvaluateAt.Equal(after(time.Minute)) {
			t.Errorf("assessment %+v", a)
		}
	})
}

func TestSoftwareKeyNeverReachesTheTop(t *testing.T) {
	s := trust.DefaultSettings()
	s.Levels[2] = nil // a careless table
	facts := views(trust.ClientVersion, trust.OSSupported, trust.MDMEnrolled, trust.DiskEncrypted)
	if a := s.Assess(true, facts, noon); a.Level != trust.LevelManaged {
		t.Errorf("level %v without a key in hardware, want Managed", a.Level)
	}
	_, _, ok := s.Observe(trust.Fact{}, report(trust.KeyInHardware, trust.StatePass, noon), noon)
	if ok {
		t.Error("the device may claim its own key to be in hardware")
	}
}

func TestObserveRefuses(t *testing.T) {
	s := trust.DefaultSettings()
	prev, _, _ := s.Observe(trust.Fact{}, report(trust.Firewall, trust.StatePass, noon), noon)
	for name, r := range map[string]trust.Report{
		"older":         report(trust.Firewall, trust.StateFail, after(-time.Second)),
		"future":        report(trust.Firewall, trust.StatePass, after(6*time.Minute)),
		"own grace":     report(trust.Firewall, trust.StatePassInGrace, noon),
		"strange state": report(trust.Firewall, 9, noon),
		"wrong source":  {Name: trust.Firewall, State: trust.StatePass, ObservedAt: noon, Source: "rumour"},
		"mdm by client": report(trust.MDMEnrolled, trust.StatePass, noon),
	} {
		if got, _, ok := s.Observe(prev, r, noon); ok || cmp.Diff(prev, got) != "" {
			t.Errorf("%s: taken", name)
		}
	}
	if _, _, ok := s.Observe(trust.Fact{}, report("made_up", trust.StatePass, noon), noon); ok {
		t.Error("a fact without a check is taken")
	}
}

// step is one thing that happens to a fact, and what it then counts as.
type step struct {
	at     time.Duration
	report string // pass, fail, unknown, or "" to look only
	want   trust.State
	until  time.Duration // when that may change; 0: not checked
}

func TestDamping(t *testing.T) {
	s := trust.DefaultSettings()
	for name, c := range map[string]struct {
		fact  trust.FactName
		steps []step
	}{
		"no news expires": {trust.Firewall, []step{{0, "pass", trust.StatePass, 5 * time.Minute},
			{5*time.Minute - 1, "", trust.StatePass, 5 * time.Minute}, {5 * time.Minute, "", trust.StateUnknown, 0}}},
		"firewall has no grace": {trust.Firewall, []step{{0, "pass", trust.StatePass, 0}, {time.Minute, "fail", trust.StateFail, 0}, {2 * time.Minute, "pass", trust.StatePass, 0}}},
		"grace then fail": {trust.ScreenLock, []step{{0, "pass", trust.StatePass, 0}, {time.Minute, "fail", trust.StatePassInGrace, 6 * time.Minute},
			{5 * time.Minute, "fail", trust.StatePassInGrace, 10 * time.Minute}, {9 * time.Minute, "fail", trust.StatePassInGrace, 11 * time.Minute},
			{11 * time.Minute, "", trust.StateFail, 14 * time.Minute}, {12 * time.Minute, "fail", trust.StateFail, 0}}},
		"no grace before the first pass": {trust.ScreenLock, []step{{0, "fail", trust.StateFail, 0}}},
		"silence has no grace":           {trust.ScreenLock, []step{{0, "pass", trust.StatePass, 0}, {time.Minute, "fail", trust.StatePassInGrace, 0}, {6 * time.Minute, "", trust.StateUnknown, 0}}},
		"unknown has no grace":           {trust.ScreenLock, []step{{0, "pass", trust.StatePass, 0}, {time.Minute, "unknown", trust.StateUnknown, 0}}},
		"flapping is held": {trust.Firewall, []step{
			{0, "pass", trust.StatePass, 0}, {10 * time.Second, "fail", trust.StateFail, 0}, {20 * time.Second, "pass", trust.StatePass, 0},
			{30 * time.Second, "fail", trust.StateFail, 0}, {40 * time.Second, "pass", trust.StatePass, 0}, {50 * time.Second, "fail", trust.StateFail, 0},
			{60 * time.Second, "pass", trust.StateFail, 120 * time.Second}, {119 * time.Second, "", trust.StateFail, 120 * time.Second}, {120 * time.Second, "", trust.StatePass, 0}}},
		"flapping has no grace": {trust.ScreenLock, []step{
			{0, "pass", trust.StatePass, 0}, {10 * time.Second, "fail", trust.StatePassInGrace, 0}, {20 * time.Second, "pass", trust.StatePass, 0},
			{30 * time.Second, "fail", trust.StatePassInGrace, 0}, {40 * time.Second, "pass", trust.StatePass, 0}, {50 * time.Second, "fail", trust.StateFail, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			var f trust.Fact
			for _, st := range c.steps {
				now := after(st.at)
				var state trust.State
				if st.report != "" {
					if err := state.UnmarshalText([]byte(st.report)); err != nil {
						t.Fatal(err)
					}
					f, _, _ = s.Observe(f, report(c.fact, state, now), now)
				}
				v, until := s.View(f, now)
				if v.State != st.want || (st.until != 0 && !until.Equal(after(st.until))) {
					t.Fatalf("at %v: %v until %v, want %v until %v", st.at, v.State, until.Sub(noon), st.want, st.until)
				}
				if got := v.At(now).State; got.Passes() != st.want.Passes() {
					t.Fatalf("at %v the view reads %v", st.at, got)
				}
			}
		})
	}
}

// TestViewOnlyGetsWorse: a stored view never starts to pass by waiting.
func TestViewOnlyGetsWorse(t *testing.T) {
	for _, st := range []trust.State{trust.StateUnknown, trust.StatePass, trust.StatePassInGrace, trust.StateFail, 77} {
		v := trust.View{Name: trust.Firewall, State: st, ExpiresAt: after(time.Minute), GraceUntil: after(time.Minute)}
		passed := true
		for _, at := range []time.Duration{0, time.Minute - 1, time.Minute, time.Hour} {
			now := v.At(after(at)).State.Passes()
			if now && !passed {
				t.Errorf("state %v passes again at %v", st, at)
			}
			passed = now
		}
		if passed {
			t.Errorf("state %v passes for ever", st)
		}
	}
}

func TestViewsInOrder(t *testing.T) {
	s := trust.DefaultSettings()
	var facts []trust.Fact
	for _, n := range []trust.FactName{trust.ClientVersion, trust.OSVersion} {
		f, _, ok := s.Observe(trust.Fact{}, report(n, trust.StatePass, noon), noon)
		if !ok {
			t.Fatal("not taken")
		}
		facts = append(facts, f)
	}
	got, at := s.Views(facts, noon)
	if len(got) != 2 || got[0].Name != trust.OSVersion || !at.Equal(after(5*time.Minute)) {
		t.Errorf("Views = %v until %v", got, at)
	}
}

func TestWords(t *testing.T) {
	for l := trust.LevelUnknown; l <= trust.MaxLevel; l++ {
		if got, err := trust.ParseLevel(l.String()); err != nil || got != l {
			t.Errorf("ParseLevel(%q) = %v, %v", l.String(), got, err)
		}
	}
	if l, err := trust.ParseLevel("Best"); err == nil || l != trust.LevelUnknown || trust.Level(9).String() != "Unknown" {
		t.Error("an unknown level is a level")
	}
	var s trust.State
	if err := s.UnmarshalText([]byte("passed")); err == nil || s != trust.StateUnknown {
		t.Error("an unknown state is a state")
	}
}

func TestSettingsRefused(t *testing.T) {
	for name, change := range map[string]func(*trust.Settings){
		"no TTL":         func(s *trust.Settings) { s.Checks[0].TTL = 0 },
		"unknown need":   func(s *trust.Settings) { s.Levels[1] = []trust.FactName{"nice"} },
		"empty level":    func(s *trust.Settings) { s.Levels[0] = nil },
		"unknown weight": func(s *trust.Settings) { s.Weights[0].Fact = "nice" },
		"heavy weight":   func(s *trust.Settings) { s.Weights[0].Points = 1000 },
	} {
		s := trust.DefaultSettings()
		change(&s)
		if s.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
