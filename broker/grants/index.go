package grants

import (
	"time"

	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// entry is a live grant in the index; dead ones are skipped and swept later, so that taking
// a grant out costs nothing per list that it stands in.
type entry struct {
	g    *Grant
	dead bool
}

// index finds live grants by each thing that a revocation can name. The guard is its
// owner's.
type index struct {
	byID        map[ids.GrantID]*entry
	byTarget    map[Target][]*entry
	byConnector map[ids.ConnectorID][]*entry
	dead        int // entries that still stand in some list
}

func newIndex() index {
	return index{byID: map[ids.GrantID]*entry{}, byTarget: map[Target][]*entry{}, byConnector: map[ids.ConnectorID][]*entry{}}
}

// targets returns the lists that a grant stands in, apart from its own id.
func (g *Grant) targets() [4]Target {
	return [4]Target{User(g.User), Device(g.PeerKey), Session(g.Session), App(g.App)}
}

// add is idempotent.
func (x *index) add(g *Grant) {
	if _, known := x.byID[g.ID]; known {
		return
	}
	e := &entry{g: g}
	x.byID[g.ID] = e
	for _, t := range g.targets() {
		x.byTarget[t] = append(x.byTarget[t], e)
	}
	for _, c := range g.Connectors {
		x.byConnector[c] = append(x.byConnector[c], e)
	}
}

// entries returns the list of a target, which may hold dead entries.
func (x *index) entries(t Target) []*entry {
	switch t.Kind {
	case grant.TargetGrant:
		if e, ok := x.byID[ids.GrantID(t.ID)]; ok {
			return []*entry{e}
		}
		return nil
	case grant.TargetUser, grant.TargetDevice, grant.TargetSession, grant.TargetApp:
		return x.byTarget[t]
	default:
		all := make([]*entry, 0, len(x.byID))
		for _, e := range x.byID {
			all = append(all, e)
		}
		return all
	}
}

func (x *index) list(t Target) []*Grant {
	return living(x.entries(t))
}

func (x *index) atConnector(id ids.ConnectorID) []*Grant { return living(x.byConnector[id]) }

func living(list []*entry) []*Grant {
	var out []*Grant
	for _, e := range list {
		if !e.dead {
			out = append(out, e.g)
		}
	}
	return out
}

// take removes the grants that a target names and that were issued at or before at, and
// returns them.
func (x *index) take(t Target, at time.Time) []*Grant {
	list := x.entries(t)
	out := make([]*Grant, 0, len(list))
	for _, e := range list {
		if e.dead || e.g.Issued.After(at) {
			continue
		}
		x.kill(e)
		out = append(out, e.g)
	}
	return out
}

func (x *index) kill(e *entry) {
	e.dead = true
	x.dead++
	delete(x.byID, e.g.ID)
}

// expire removes the grants whose hard end has come, and returns them.
func (x *index) expire(now time.Time) []*Grant {
	var out []*Grant
	for _, e := range x.byID {
		if !e.g.HardEnd.After(now) {
			x.kill(e)
			out = append(out, e.g)
		}
	}
	return out
}

// sweep builds the lists anew when more of them is dead than alive.
func (x *index) sweep() {
	if x.dead <= len(x.byID) {
		return
	}
	fresh := newIndex()
	for _, e := range x.byID {
		fresh.add(e.g)
	}
	*x = fresh
}
