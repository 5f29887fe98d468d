// Package checklist is what a new broker says in its terminal: what has been done, what is
// next, and the line to paste for it. It ticks itself as the installation grows and falls
// silent when everything is done. It prints secrets (the owner code, a join token) to the
// terminal it was given, and to nothing else.
//
// Run owns everything; Steps is a pure function.
package checklist

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

const lookEvery = time.Second

// State is how far an installation is.
type State struct {
	Owner     bool
	Connector bool
	// Apps are the names of the apps, in the order in which they were published.
	Apps []string
	Rule bool
	// Person is the login of somebody whom a rule may let in; empty when nobody is there yet.
	Person string
	Used   bool
}

// Done reports whether the list is finished.
func (s State) Done() bool { return s.Owner && s.Connector && len(s.Apps) > 0 && s.Rule && s.Used }

// Source is the installation.
type Source interface {
	State(ctx context.Context) (State, error)
	// URL is the broker's URL with its pin.
	URL() string
	// OwnerLink returns a fresh link to the set-up page with its one-time code.
	OwnerLink(ctx context.Context) (string, error)
	// Fingerprint is of the certificate that a browser will warn about; empty when it is one
	// of the operator's.
	Fingerprint() (string, error)
	// JoinToken returns a fresh one-time join token that may publish, and its site.
	JoinToken(ctx context.Context) (token, site string, err error)
}

// Hints are what the lines to paste are made of; some are secrets that only the terminal
// may show.
type Hints struct {
	URL, OwnerLink, Fingerprint, Token, Site string
}

// Step is one line of the list.
type Step struct {
	Title string
	Done  bool
	// Next is what to do, printed for the first step that is not done.
	Next []string
}

// Steps returns the list for a state.
func Steps(s State, h Hints) []Step {
	app, person := "wiki", "NAME"
	if len(s.Apps) > 0 {
		app = s.Apps[0]
	}
	if s.Person != "" {
		person = s.Person
	}
	return []Step{
		{Title: "An owner", Done: s.Owner, Next: ownerLines(h)},
		{Title: "A connector beside your apps", Done: s.Connector, Next: []string{
			"On a machine that reaches them, which becomes one of the site " + h.Site + ", run", "  postern-connector run --join '" + h.URL + "' --publish " + app + "=10.0.0.5:80",
			"and paste this token when it asks:", "  " + h.Token,
		}},
		{Title: "An app", Done: len(s.Apps) > 0, Next: []string{
			"Publish one:", "  postern admin app publish " + app + " 10.0.0.5:80",
		}},
		{Title: "A rule", Done: s.Rule, Next: []string{
			"Nothing is allowed yet. Let somebody in:", "  postern admin rule allow " + person + " " + app,
		}},
		{Title: "An employee", Done: s.Used, Next: []string{
			"On an employee's machine, run", "  postern up '" + h.URL + "'",
		}},
	}
}

func ownerLines(h Hints) []string {
	lines := []string{"Open this link, once:", "  " + h.OwnerLink}
	if h.Fingerprint == "" {
		return lines
	}
	return append(lines, "Your browser will warn about the certificate. Its SHA-256 fingerprint is", "  "+h.Fingerprint)
}

// Write prints the list.
func Write(w io.Writer, steps []Step) error {
	var b strings.Builder
	b.WriteString("\n")
	next := true
	for _, s := range steps {
		mark := " "
		if s.Done {
			mark = "x"
		}
		fmt.Fprintf(&b, "  [%s] %s\n", mark, s.Title)
		if s.Done || !next {
			continue
		}
		next = false
		for _, line := range s.Next {
			fmt.Fprintf(&b, "      %s\n", line)
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Run prints the list whenever it changes, until it is done or ctx ends.
func Run(ctx context.Context, src Source, w io.Writer) error {
	l := list{src: src, out: w}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		done, err := l.look(ctx)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("check list: %w", err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// list remembers what it printed and which secrets it has drawn.
type list struct {
	src   Source
	out   io.Writer
	last  string
	hints Hints
}

// look prints the list if it is new; done says that nothing is left.
func (l *list) look(ctx context.Context) (done bool, err error) {
	s, err := l.src.State(ctx)
	if err != nil {
		return false, err
	}
	key := fmt.Sprint(s)
	if key == l.last {
		return s.Done(), nil
	}
	first := l.last == ""
	l.last = key
	if first && s.Done() {
		return true, nil
	}
	if err := l.draw(ctx, s); err != nil {
		return false, err
	}
	return s.Done(), Write(l.out, Steps(s, l.hints))
}

// draw makes what the next step needs; secrets once.
func (l *list) draw(ctx context.Context, s State) (err error) {
	l.hints.URL = l.src.URL()
	if !s.Owner && l.hints.OwnerLink == "" {
		if l.hints.OwnerLink, err = l.src.OwnerLink(ctx); err != nil {
			return err
		}
	}
	if !s.Owner {
		l.hints.Fingerprint, err = l.src.Fingerprint()
	}
	if s.Owner && !s.Connector && l.hints.Token == "" {
		l.hints.Token, l.hints.Site, err = l.src.JoinToken(ctx)
	}
	return err
}
