// Package session decides what a client knows of its grants and denials without asking the
// broker, and what it does after a connector's refusal. client/tunnels owns one Book under
// its lock and carries the decisions out.
//
// Everything here is a plain value without I/O, clock or goroutine; now comes in.
package session

import (
	"strings"
	"time"

	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// margin ends the use of a grant for new flows a little before its hard end.
	margin = 5 * time.Second
	// maxDenials bounds remembered denials; beyond it the broker is asked each time.
	maxDenials = 4096
	// maxHold bounds how long the broker may make us answer a denial from memory.
	maxHold = 5 * time.Minute
)

// App names what somebody wants to reach: by id from the catalog, or by a name alone.
type App struct {
	ID   ids.AppID
	Name string
}

// Key is the same for two ways to ask for one app by id, or by the same name.
func (a App) Key() string {
	if a.ID != "" {
		return string(a.ID)
	}
	return "name " + strings.ToLower(strings.TrimSuffix(a.Name, "."))
}

// Grant is a permission of the broker as the client holds it.
type Grant struct {
	ID       ids.GrantID
	Envelope []byte
	// HardEnd is in the broker's time.
	HardEnd    time.Time
	Connectors []*controlv1.ConnectorPath
	Receipt    *controlv1.Receipt
}

// Denial is a refusal of the broker, with the receipt to show.
type Denial struct {
	Receipt *controlv1.Receipt
	Until   time.Time
}

// Book is what the client knows. Its zero value knows nothing.
type Book struct {
	grants  map[string]*Grant
	denials map[string]Denial
}

// Grant returns a live grant for the app. now is the broker's time.
func (b *Book) Grant(app App, now time.Time) (*Grant, bool) {
	g, ok := b.grants[app.Key()]
	if !ok {
		return nil, false
	}
	if !now.Before(g.HardEnd.Add(-margin)) {
		delete(b.grants, app.Key())
		return nil, false
	}
	return g, true
}

// Denial returns a denial that still answers for the app. now is this machine's time.
func (b *Book) Denial(app App, now time.Time) (*controlv1.Receipt, bool) {
	d, ok := b.denials[app.Key()]
	if !ok {
		return nil, false
	}
	if !now.Before(d.Until) {
		delete(b.denials, app.Key())
		return nil, false
	}
	return d.Receipt, true
}

// Allow keeps a grant; an older denial of the app is void.
func (b *Book) Allow(app App, g *Grant) {
	if b.grants == nil {
		b.grants = map[string]*Grant{}
	}
	b.grants[app.Key()] = g
	delete(b.denials, app.Key())
}

// Deny keeps a denial for as long as the broker said; an older grant stays only until it
// is told to end.
func (b *Book) Deny(app App, r *controlv1.Receipt, hold time.Duration, now time.Time) {
	hold = min(hold, maxHold)
	if hold <= 0 || len(b.denials) >= maxDenials {
		return
	}
	if b.denials == nil {
		b.denials = map[string]Denial{}
	}
	b.denials[app.Key()] = Denial{Receipt: r, Until: now.Add(hold)}
}

// ForgetDenials makes the next use of each denied app ask the broker.
func (b *Book) ForgetDenials() { b.denials = nil }

// End drops a grant wherever it stands and reports whether it was known.
func (b *Book) End(id ids.GrantID) bool {
	found := false
	for key, g := range b.grants {
		if g.ID == id {
			delete(b.grants, key)
			found = true
		}
	}
	return found
}

// EndAll drops every grant and denial, because nobody is signed in any more.
func (b *Book) EndAll() { b.grants, b.denials = nil, nil }

// Via returns an app whose grant names the connector, to ask for fresh tickets with.
func (b *Book) Via(connector ids.ConnectorID, now time.Time) (App, bool) {
	for key, g := range b.grants {
		if !now.Before(g.HardEnd.Add(-margin)) {
			continue
		}
		for _, c := range g.Connectors {
			if c.ConnectorId != string(connector) {
				continue
			}
			if name, ok := strings.CutPrefix(key, "name "); ok {
				return App{Name: name}, true
			}
			return App{ID: ids.AppID(key)}, true
		}
	}
	return App{}, false
}

// Action is what to do after a connector's answer.
type Action int

// The actions. The zero Action gives up.
const (
	// GiveUp tells the program the truth.
	GiveUp Action = iota
	// TryAnother asks the next connector: this one did not dial (rule 17).
	TryAnother
	// AskAgain needs a new grant.
	AskAgain
)

// After says what to do when a connector refused with code. A code that says that the app
// was tried is the truth and is never asked for twice.
func After(code frame.Code) Action {
	switch code {
	case frame.NotDialled, frame.NotAssigned, frame.NotLive, frame.LeaseEnded, frame.Draining,
		frame.NoMemory, frame.AuditUnavailable, frame.Unsupported, frame.GrantForeign:
		return TryAnother
	case frame.GrantExpired, frame.GrantUnknown, frame.GrantInvalid, frame.Revoked, frame.Withdrawn, frame.Denied:
		return AskAgain
	default:
		return GiveUp
	}
}

// Outcome is what a program is told about a connection that did not come about.
type Outcome int

// The outcomes. The zero Outcome is the most careful one.
const (
	// NotAllowed is a refusal by policy, or by anything that cannot be told apart from it.
	NotAllowed Outcome = iota
	// Refused is what the app's host says with RST.
	Refused
	// Unreachable is an app, or a connector, that cannot be reached.
	Unreachable
	// TimedOut is an app that does not answer.
	TimedOut
)

// OutcomeOf translates a connector's code.
func OutcomeOf(code frame.Code) Outcome {
	switch code {
	case frame.Refused:
		return Refused
	case frame.Timeout:
		return TimedOut
	case frame.Unreachable, frame.NameNotFound, frame.NameLeftAssignment, frame.NotDialled, frame.NotLive, frame.LeaseEnded,
		frame.Draining, frame.NotAssigned, frame.NoMemory, frame.AuditUnavailable, frame.Internal, frame.Protocol, frame.Unsupported,
		frame.Reset, frame.Gone, frame.DetachedTooLong:
		return Unreachable
	default:
		return NotAllowed
	}
}
