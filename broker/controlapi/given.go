package controlapi

import (
	"sync"

	"github.com/postern-zt/postern/proto/ids"
)

// given are the grants that a device on its stream knows of, so that it can be told of
// the end of each, however short a grant lived.
type given struct {
	mu     sync.Mutex // guards grants
	grants map[ids.GrantID]bool
}

func newGiven() *given { return &given{grants: map[ids.GrantID]bool{}} }

func (g *given) add(id ids.GrantID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.grants[id] = true
}

// ended returns the known grants that are not among the live ones, once, and knows the
// live ones from now on. live is asked after the known ones were read: a grant is live
// before it is known.
func (g *given) ended(live func() []ids.GrantID) (out []ids.GrantID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.grants
	g.grants = make(map[ids.GrantID]bool, len(old))
	for _, id := range live() {
		g.grants[id] = true
	}
	for id := range old {
		if !g.grants[id] {
			out = append(out, id)
		}
	}
	return out
}

// watchers finds the open streams of a device.
type watchers struct {
	mu       sync.Mutex // guards byDevice
	byDevice map[ids.DeviceID]map[*given]bool
}

func newWatchers() *watchers {
	return &watchers{byDevice: map[ids.DeviceID]map[*given]bool{}}
}

// enter notes a stream until leave is called.
func (w *watchers) enter(id ids.DeviceID, g *given) (leave func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byDevice[id] == nil {
		w.byDevice[id] = map[*given]bool{}
	}
	w.byDevice[id][g] = true
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.byDevice[id], g)
		if len(w.byDevice[id]) == 0 {
			delete(w.byDevice, id)
		}
	}
}

// give notes a grant on every stream of a device.
func (w *watchers) give(id ids.DeviceID, grant ids.GrantID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for g := range w.byDevice[id] {
		g.add(grant)
	}
}
