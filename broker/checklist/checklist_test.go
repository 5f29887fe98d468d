package checklist_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/broker/checklist"
)

// install is an installation that grows as the test says.
type install struct {
	state         checklist.State
	links, tokens int
}

func (i *install) State(context.Context) (checklist.State, error) { return i.state, nil }
func (i *install) URL() string                                    { return "https://broker:8443/#pin=00" }
func (i *install) OwnerLink(context.Context) (string, error) {
	i.links++
	return "https://broker:8443/setup#CODE", nil
}
func (i *install) JoinToken(context.Context) (string, error) {
	i.tokens++
	return "TOKEN", nil
}

func TestRunTicksItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &install{}
		var out strings.Builder
		done := make(chan error, 1)
		go func() { done <- checklist.Run(t.Context(), i, &out) }()
		grow := func(edit func(*checklist.State), wants ...string) {
			t.Helper()
			synctest.Wait()
			out.Reset()
			edit(&i.state)
			<-time.After(1100 * time.Millisecond)
			synctest.Wait()
			for _, want := range wants {
				if !strings.Contains(out.String(), want) {
					t.Errorf("after the step: %q lacks %q", out.String(), want)
				}
			}
		}
		synctest.Wait()
		if !strings.Contains(out.String(), "setup#CODE") || strings.Contains(out.String(), "TOKEN") {
			t.Errorf("at the start: %q", out.String())
		}
		grow(func(s *checklist.State) { s.Owner = true }, "[x] An owner", "TOKEN", "--join")
		grow(func(s *checklist.State) { s.Connector = true; s.Apps = []string{"wiki"} }, "rule allow NAME wiki")
		grow(func(s *checklist.State) { s.Rule = true }, "postern up")
		grow(func(s *checklist.State) { s.Used = true }, "[x] An employee")
		if err := <-done; err != nil || i.links != 1 || i.tokens != 1 {
			t.Errorf("Run = %v, %d links, %d tokens", err, i.links, i.tokens)
		}
	})
}

func TestFinishedInstallationIsSilent(t *testing.T) {
	i := &install{state: checklist.State{Owner: true, Connector: true, Apps: []string{"wiki"}, Rule: true, Used: true}}
	var out strings.Builder
	if err := checklist.Run(t.Context(), i, &out); err != nil || out.Len() != 0 || i.tokens != 0 {
		t.Errorf("Run = %v, printed %q", err, out.String())
	}
}
