package chain

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var day = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// at is record n in the history of a name.
func at(history string, n uint64) Head {
	return Head{Writer: "brk_1", Seq: n, Hash: HashLine([]byte(fmt.Sprint(history, n)))}
}

// answers is what a broker with this history up to record last says.
func answers(m Memory, history string, last uint64) (out []Answer) {
	for _, h := range m.Heads {
		a := Answer{Head: Head{Writer: h.Writer, Seq: h.Seq}}
		if h.Seq <= last {
			a.Head = at(history, h.Seq)
		}
		out = append(out, a)
	}
	return out
}

func TestMemoryOfAGrowingChain(t *testing.T) {
	var m Memory
	for _, n := range []uint64{5, 5, 9, 12, 20} {
		if m.Remember(at("a", n), day) {
			t.Fatalf("head %d: %v", n, m.Lost)
		}
	}
	if diff := cmp.Diff([]Head{at("a", 5), at("a", 20)}, m.Heads); diff != "" {
		t.Errorf("the one that is to be compared, and the newest:\n%s", diff)
	}
	if m.Compare(answers(m, "a", 30), day) || m.Remember(at("a", 30), day) {
		t.Fatalf("reconnect: %v", m.Lost)
	}
	if diff := cmp.Diff([]Head{at("a", 20), at("a", 30)}, m.Heads); diff != "" {
		t.Error(diff)
	}
	if _, told := m.Loss(day); told {
		t.Error("a loss is told")
	}
}

func TestMemoryNoticesALoss(t *testing.T) {
	cases := map[string]struct {
		change func(m *Memory) bool
		reason string
		goesOn string
	}{
		"cut tail":        {func(m *Memory) bool { return m.Compare(answers(*m, "a", 15), day) }, "not there any more", "b"},
		"another history": {func(m *Memory) bool { return m.Compare(answers(*m, "b", 30), day) }, "another one now", "b"},
		"shorter":         {func(m *Memory) bool { return m.Remember(at("a", 15), day) }, "ends at record 15, and had 20", "a"},
		"same number":     {func(m *Memory) bool { return m.Remember(at("b", 20), day) }, "another one now", "b"},
		"cut on an open stream, then longer": {func(m *Memory) bool {
			m.Remember(at("b", 40), day) // nobody can tell yet
			return m.Compare(answers(*m, "b", 50), day)
		}, "another one now", "b"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var m Memory
			m.Remember(at("a", 20), day)
			if !c.change(&m) {
				t.Fatal("not noticed")
			}
			l, told := m.Loss(day.Add(time.Hour))
			if !told || l.Head != at("a", 20) || !strings.Contains(l.Text(), c.reason) || !strings.Contains(l.Text(), at("a", 20).String()) {
				t.Errorf("loss = %+v, %v", l, told)
			}
			m.Remember(at(c.goesOn, 60), day)
			if m.Compare(answers(m, c.goesOn, 60), day) {
				t.Errorf("told twice: %v", m.Lost)
			}
			if _, told := m.Loss(day.Add(31 * 24 * time.Hour)); told {
				t.Error("told for ever")
			}
		})
	}
}

func TestMemoryKeepsWhatWasNotAnswered(t *testing.T) {
	var m Memory
	m.Remember(at("a", 20), day)
	if m.Compare(nil, day) || m.Compare([]Answer{{Head: Head{Writer: "brk_2", Seq: 20}}}, day) || len(m.Heads) != 1 {
		t.Errorf("%+v", m)
	}
	if m.Compare([]Answer{{Head: Head{Writer: "brk_1", Seq: 20}, Archived: true}}, day) || len(m.Heads) != 1 {
		t.Errorf("an archived record counts as lost: %+v", m)
	}
	m.Remember(Head{}, day)
	m.Remember(Head{Writer: strings.Repeat("x", 200), Seq: 1, Hash: Hash{1}}, day)
	if len(m.Heads) != 1 {
		t.Errorf("nonsense is remembered: %+v", m.Heads)
	}
	for i := range 100 {
		m.Remember(Head{Writer: fmt.Sprint("brk_", i), Seq: 1, Hash: Hash{1}}, day)
	}
	if len(m.Heads) > maxHeads {
		t.Errorf("%d heads are remembered", len(m.Heads))
	}
}

func TestParseHead(t *testing.T) {
	if got, err := ParseHead(at("a", 7).String()); err != nil || got != at("a", 7) {
		t.Errorf("ParseHead = %v, %v", got, err)
	}
	hash := strings.Repeat("0", 64)
	for _, bad := range []string{"", "brk_1", ":1:" + hash, "brk_1:0:" + hash, "brk_1:x:" + hash, "brk_1:1:00", "brk_1:1:" + hash + ":"} {
		if h, err := ParseHead(bad); err == nil {
			t.Errorf("ParseHead(%q) = %v", bad, h)
		}
	}
}

func FuzzParseHead(f *testing.F) {
	f.Add(at("a", 7).String())
	f.Fuzz(func(t *testing.T, text string) {
		h, err := ParseHead(text)
		if err != nil {
			return
		}
		if again, err := ParseHead(h.String()); err != nil || again != h {
			t.Errorf("ParseHead(%q) does not survive: %v, %v", text, again, err)
		}
	})
}
