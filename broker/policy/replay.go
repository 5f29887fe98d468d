package policy

import (
	"fmt"
	"slices"

	"github.com/postern-zt/postern/proto/ids"
)

// Replay decides a stored canonical input again. Under the revision of its day the answer is
// the one that was given.
func (r *Revision) Replay(canonical []byte) (Decision, error) {
	in, err := DecodeInput(canonical)
	if err != nil {
		return Decision{}, fmt.Errorf("replay: %w", err)
	}
	return r.Decide(in), nil
}

// Access is what one user on one device gets from one app.
type Access struct {
	User    ids.UserID   `json:"user"`
	Device  ids.DeviceID `json:"device"`
	App     ids.AppID    `json:"app"`
	Verdict Verdict      `json:"verdict"`
	Verbs   []Verb       `json:"verbs,omitempty"`
	Reasons []Reason     `json:"reasons"`
}

func (r *Revision) access(in Input) Access {
	d := r.Decide(in)
	return Access{User: in.Identity.User, Device: in.Device.ID, App: in.App.ID, Verdict: d.Verdict, Verbs: d.Verbs, Reasons: d.Reasons}
}

// WhoCan answers for each candidate what it would get from the app. The candidates' own App
// and Verbs are not looked at.
func (r *Revision) WhoCan(app App, candidates []Input) []Access {
	out := make([]Access, len(candidates))
	for i, in := range candidates {
		in.App, in.Verbs = app, nil
		out[i] = r.access(in)
	}
	return out
}

// WhatCan answers for each app what the user of in would get.
func (r *Revision) WhatCan(in Input, apps []App) []Access {
	out := make([]Access, len(apps))
	for i, app := range apps {
		in.App, in.Verbs = app, nil
		out[i] = r.access(in)
	}
	return out
}

// Change is one recorded request that a new revision answers differently.
type Change struct {
	Before Access `json:"before"`
	After  Access `json:"after"`
}

// Gives reports whether the new revision gives more than the old one.
func (c Change) Gives() bool {
	return c.After.Verdict > c.Before.Verdict || (c.After.Verdict == c.Before.Verdict && len(c.After.Verbs) > len(c.Before.Verbs))
}

// Preview replays recorded inputs under both revisions and returns what differs, in the order
// of the inputs, each (user, device, app) once. A nil old revision denies everything. Inputs
// that do not decode are counted in skipped.
func Preview(before, after *Revision, recorded [][]byte) (changes []Change, skipped int) {
	type key struct {
		user   ids.UserID
		device ids.DeviceID
		app    ids.AppID
	}
	seen := map[key]bool{}
	for _, b := range recorded {
		in, err := DecodeInput(b)
		if err != nil {
			skipped++
			continue
		}
		k := key{in.Identity.User, in.Device.ID, in.App.ID}
		if seen[k] {
			continue
		}
		seen[k] = true
		c := Change{Before: before.access(in), After: after.access(in)}
		if c.Before.Verdict != c.After.Verdict || !slices.Equal(c.Before.Verbs, c.After.Verbs) {
			changes = append(changes, c)
		}
	}
	return changes, skipped
}
