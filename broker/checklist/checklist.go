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
	Apps      []string
	Rule      bool
	Used      bool
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
	// JoinToken returns a fresh one-time join token that may publish.
	JoinToken(ctx context.Context) (string, error)
}

// Step is one line of the list.
type Step struct {
	Title string
	Done  bool
	// Next is what to do, printed for the first step that is not done.
	Next []string
}

// Steps returns the list for a state; secrets hold what only the terminal may show.
func Steps(s State, url, ownerLink, token string) []Step {
	app := "wiki"
	if len(s.Apps) > 0 {
		app = s.Apps[0]
	}
	return []Step{
		{Title: "An owner", Done: s.Owner, Next: []string{"Open this link, once:", "  " + ownerLink}},
		{Title: "A connector beside your apps", Done: s.Connector, Next: []string{
			"On a machine that reaches them, run", "  postern-connector run --join '" + url + "' --publish " + app + "=10.0.0.5:80",
			"and paste this token when it asks:", "  " + token,
		}},
		{Title: "An app", Done: len(s.Apps) > 0, Next: []string{
			"Publish one:", "  postern admin app publish " + app + " 10.0.0.5:80",
		}},
		{Title: "A rule", Done: s.Rule, Next: []string{
			"Nothing is allowed yet. Let somebody in:", "  postern admin rule allow NAME " + app,
		}},
		{Title: "An employee", Done: s.Used, Next: []string{
			"On an employee's machine, run", "  postern up '" + url + "'",
		}},
	}
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
	src       Source
	out       io.Writer
	last      string
	ownerLink string
	token     string
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
	return s.Done(), Write(l.out, Steps(s, l.src.URL(), l.ownerLink, l.token))
}

// draw makes the secret that the next step needs, once.
func (l *list) draw(ctx context.Context, s State) (err error) {
	if !s.Owner && l.ownerLink == "" {
		l.ownerLink, err = l.src.OwnerLink(ctx)
	}
	if s.Owner && !s.Connector && l.token == "" {
		l.token, err = l.src.JoinToken(ctx)
	}
	return err
}
