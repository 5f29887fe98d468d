package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/postern-zt/postern/connector/statusapi"
)

// notRunning is the exit code of status without a connector, as service scripts use it.
const notRunning = 3

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	err  error
}

// Error gives the error's text.
func (e *exitError) Error() string { return e.err.Error() }

// Unwrap gives the error.
func (e *exitError) Unwrap() error { return e.err }

// statusCmd asks the connector on this machine.
type statusCmd struct {
	JSON bool `help:"The whole status as JSON."`
}

// Help names the exit codes.
func (statusCmd) Help() string {
	return "Exit code 0: it serves; 1: it runs and does not serve; 3: it does not run."
}

// errNotServing says that the connector runs and nobody gets through.
var errNotServing = errors.New("the connector does not serve at present")

// Run prints the status.
func (s *statusCmd) Run(e *env) error {
	st, err := statusapi.Fetch(e.ctx, e.socket)
	if errors.Is(err, statusapi.ErrNotRunning) {
		return &exitError{code: notRunning, err: errors.New("the connector does not run on this machine")}
	}
	if err != nil {
		return err
	}
	if s.JSON {
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(st)
	} else {
		_, err = io.WriteString(e.out, text(st, time.Now()))
	}
	if err == nil && !serves(st) {
		return &exitError{code: 1, err: errNotServing}
	}
	return err
}

// serves reports whether a device could open a flow now.
func serves(st statusapi.Status) bool {
	for _, r := range st.Relays {
		if r.Up && st.Live {
			return true
		}
	}
	return false
}

// text is the status for people.
func text(st statusapi.Status, now time.Time) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	line("process", "%s, pid %d, version %s, for %s", st.ID, st.PID, st.Version, age(now, st.Started))
	line("key", "%s", st.Key)
	line("broker", "%s, site %s", st.Broker, st.Site)
	if st.Uplink.Connected {
		line("uplink", "connected for %s", age(now, st.Uplink.Since))
	} else {
		line("uplink", "not connected for %s: %s", age(now, st.Uplink.Since), st.Uplink.Problem)
	}
	if !st.Live {
		line("", "no fresh word of the broker: no new flow opens")
	}
	for _, r := range st.Relays {
		if r.Up {
			line("relay", "%s %s up for %s", r.ID, r.Transport, age(now, r.Since))
		} else {
			line("relay", "%s %s down for %s: %s", r.ID, r.Transport, age(now, r.Since), r.Problem)
		}
	}
	if len(st.Relays) == 0 {
		line("relay", "none named by the broker")
	}
	for _, a := range st.Apps {
		line("app", "%s", appText(a))
	}
	line("use", "%d grants, %d flows", st.Grants, st.Flows)
	line("clock", "%s off the broker's", time.Duration(st.ClockOffsetMS)*time.Millisecond)
	if st.AuditProblem != "" {
		line("AUDIT", "%s", st.AuditProblem)
	}
	line("certificate", "until %s", st.CertificateEnds.UTC().Format(time.DateTime))
	return b.String()
}

func appText(a statusapi.App) string {
	name := a.Name
	if name == "" {
		name = a.ID
	}
	var targets []string
	for _, t := range a.Targets {
		targets = append(targets, t.Network+" "+t.Address)
	}
	out := name + " (" + strings.Join(targets, ", ") + ") " + strings.ReplaceAll(a.State, "_", " ")
	if a.Code != "" && a.Code != "ok" {
		out += ": " + a.Code
	}
	return out
}

func age(now, since time.Time) time.Duration { return now.Sub(since).Round(time.Second) }
