package checklist_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-zt/postern/broker/checklist"
)

// install is an installation that grows as the test says.
type install struct {
	mu            sync.Mutex // guards state and out
	state         checklist.State
	out           strings.Builder
	links, tokens int
}

func (i *install) State(context.Context) (checklist.State, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state, nil
}

// Write is the terminal.
func (i *install) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.out.Write(p)
}

// take returns what was printed, changes the state, and forgets the print.
func (i *install) take(edit func(*checklist.State)) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	defer i.out.Reset()
	edit(&i.state)
	return i.out.String()
}

func (i *install) URL() string { return "https://broker:8443/#pin=00" }
func (i *install) OwnerLink(context.Context) (string, error) {
	i.links++
	return "https://broker:8443/setup#CODE", nil
}
func (i *install) Fingerprint() (string, error) { return "D2:D4", nil }
func (i *install) JoinToken(context.Context) (string, string, error) {
	i.tokens++
	return "TOKEN", "berlin", nil
}

func TestRunTicksItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &install{}
		done := make(chan error, 1)
		go func() { done <- checklist.Run(t.Context(), i, i) }()
		asIs := func(*checklist.State) {}
		grow := func(edit func(*checklist.State), wants ...string) {
			t.Helper()
			i.take(edit)
			<-time.After(1100 * time.Millisecond)
			synctest.Wait()
			printed := i.take(asIs)
			for _, want := range wants {
				if !strings.Contains(printed, want) {
					t.Errorf("after the step: %q lacks %q", printed, want)
				}
			}
		}
		synctest.Wait()
		if printed := i.take(asIs); !strings.Contains(printed, "setup#CODE") || !strings.Contains(printed, "D2:D4") || strings.Contains(printed, "TOKEN") {
			t.Errorf("at the start: %q", printed)
		}
		grow(func(s *checklist.State) { s.Owner = true }, "[x] An owner", "TOKEN", "--join", "site berlin")
		grow(func(s *checklist.State) { s.Connector = true; s.Apps = []string{"wiki"} }, "rule allow NAME wiki")
		grow(func(s *checklist.State) { s.Person = "ann" }, "rule allow ann wiki")
		grow(func(s *checklist.State) { s.Rule = true }, "postern up")
		grow(func(s *checklist.State) { s.Used = true }, "[x] An employee")
		if err := <-done; err != nil || i.links != 1 || i.tokens != 1 {
			t.Errorf("Run = %v, %d links, %d tokens", err, i.links, i.tokens)
		}
	})
}

// TestOperatorsCertificateNeedsNoFingerprint: a browser does not warn about it.
func TestOperatorsCertificateNeedsNoFingerprint(t *testing.T) {
	var out strings.Builder
	if err := checklist.Write(&out, checklist.Steps(checklist.State{}, checklist.Hints{OwnerLink: "LINK"})); err != nil || strings.Contains(out.String(), "ingerprint") {
		t.Errorf("Write = %v, printed %q", err, out.String())
	}
}

func TestFinishedInstallationIsSilent(t *testing.T) {
	i := &install{state: checklist.State{Owner: true, Connector: true, Apps: []string{"wiki"}, Rule: true, Used: true}}
	if err := checklist.Run(t.Context(), i, i); err != nil || i.out.Len() != 0 || i.tokens != 0 {
		t.Errorf("Run = %v, printed %q", err, i.out.String())
	}
}
