//go:build linux

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
)

// resultFile is written beside this package.
const resultFile = "latest.json"

// row is one figure of a run.
type row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Reference is the same figure of what the row is compared with, in the same run; 0
	// where there is none.
	Reference float64 `json:"reference"`
	// Ratio is Value by Reference; 0 without a reference.
	Ratio float64 `json:"ratio"`
	// goal is what the row is held against.
	goal goal
	// disturbed says that others used the machine: the ratio says little.
	disturbed bool
}

// goal is a bar for a ratio. The gate fails the run, the target is only shown. At its zero
// value it holds nothing.
type goal struct {
	gate, target float64
	// most says that the ratio is to stay below instead of above.
	most bool
	// added is how much more than the reference the value may be; it is only shown.
	added float64
}

func newRow(name string, value float64, unit string, reference float64, g goal) row {
	r := row{Name: name, Value: value, Unit: unit, Reference: reference, goal: g}
	if reference != 0 {
		r.Ratio = value / reference
	}
	return r
}

// reaches reports whether a ratio is as good as a bar; no bar is always reached.
func (g goal) reaches(ratio, bar float64) bool {
	switch {
	case bar == 0:
		return true
	case g.most:
		return ratio != 0 && ratio <= bar
	default:
		return ratio >= bar
	}
}

func (r row) missedGate() bool { return !r.goal.reaches(r.Ratio, r.goal.gate) }

// verdict says in words how the row stands.
func (r row) verdict() string {
	var words []string
	for _, bar := range []struct {
		name string
		at   float64
	}{{"gate", r.goal.gate}, {"target", r.goal.target}} {
		if bar.at == 0 {
			continue
		}
		words = append(words, fmt.Sprintf("%s %.2f %s", bar.name, bar.at, okOrMissed(r.goal.reaches(r.Ratio, bar.at))))
	}
	if r.disturbed {
		words = append(words, "DISTURBED by other programs")
	}
	if added := r.Value - r.Reference; r.goal.added > 0 {
		words = append(words, fmt.Sprintf("adds %.0f, target %.0f %s", added, r.goal.added, okOrMissed(added <= r.goal.added)))
	}
	return strings.Join(words, ", ")
}

func okOrMissed(ok bool) string {
	if ok {
		return "ok"
	}
	return "MISSED"
}

// table prints rows for people.
func table(rows []row) string {
	var s strings.Builder
	w := tabwriter.NewWriter(&s, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "row\tvalue\tunit\treference\tratio\t verdict\t")
	for _, r := range rows {
		reference, ratio := "-", "-"
		if r.Reference != 0 {
			reference, ratio = fmt.Sprintf("%.2f", r.Reference), fmt.Sprintf("%.2f", r.Ratio)
		}
		fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%s\t %s\t\n", r.Name, r.Value, r.Unit, reference, ratio, r.verdict())
	}
	_ = w.Flush() // to a string
	return s.String()
}

// publish writes the rows to the result file and fails the run for each missed gate.
func publish(t *testing.T, rows []row) {
	t.Helper()
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(resultFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.missedGate() {
			t.Errorf("%s is %.2f times the reference: %s", r.Name, r.Ratio, r.verdict())
		}
	}
}
