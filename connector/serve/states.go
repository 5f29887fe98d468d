package serve

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// The transports to a relay.
const (
	TCP = "tcp"
	UDP = "udp"
)

// rebindTime is how long a binding that asked for its ticket again may take before it
// asks once more: longer than an attempt with the pause behind it.
const rebindTime = 20 * time.Second

// State is how one transport to one relay stands.
type State struct {
	Relay     ids.RelayID
	Transport string
	Up        bool
	// Problem says why it is not up.
	Problem string
	Since   time.Time
}

type stateKey struct {
	relay     ids.RelayID
	transport string
}

// states keeps how transports stand. It is safe for concurrent use.
type states struct {
	mu sync.Mutex // guards the fields below
	m  map[stateKey]State
	// rebinding is what a binding that stood has asked for since; guarded by mu.
	rebinding map[stateKey]rebind
}

// rebind is a binding that asked for its ticket again, because it was lost or told to. It
// does not say when it stands: it does unless it asks once more soon after.
type rebind struct {
	asked  time.Time
	failed bool
}

func newStates() *states {
	return &states{m: make(map[stateKey]State), rebinding: make(map[stateKey]rebind)}
}

func (s *states) up(id ids.RelayID, transport string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rebinding, stateKey{id, transport})
	s.set(State{Relay: id, Transport: transport, Up: true})
}

// down notes that a transport does not stand; without an error it keeps the reason.
func (s *states) down(id ids.RelayID, transport string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Relay: id, Transport: transport}
	old := s.m[stateKey{id, transport}]
	switch {
	case err == nil || errors.Is(err, errAttaching) && old.Problem != "":
		st.Problem = cmp.Or(old.Problem, errAttaching.Error())
	default:
		st.Problem = err.Error()
	}
	delete(s.rebinding, stateKey{id, transport})
	s.set(st)
}

// fails notes why an attempt failed, which says nothing about a transport that stands: the
// relay is dialled for every call too.
func (s *states) fails(id ids.RelayID, transport string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := stateKey{id, transport}
	if st, ok := s.m[key]; ok && !st.Up {
		st.Problem = err.Error()
		s.m[key] = st
	}
}

// set keeps the time of the change; mu is held.
func (s *states) set(st State) {
	key := stateKey{st.Relay, st.Transport}
	st.Since = time.Now()
	if old, ok := s.m[key]; ok && old.Up == st.Up {
		st.Since = old.Since
	}
	s.m[key] = st
}

// asked notes that a binding asked for its ticket.
func (s *states) asked(id ids.RelayID, transport string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := stateKey{id, transport}
	if s.m[key].Up {
		now := time.Now()
		s.rebinding[key] = rebind{asked: now, failed: now.Sub(s.rebinding[key].asked) < rebindTime}
	}
}

func (s *states) forget(id ids.RelayID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, transport := range []string{TCP, UDP} {
		delete(s.m, stateKey{id, transport})
		delete(s.rebinding, stateKey{id, transport})
	}
}

func (s *states) list(now time.Time) []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]State, 0, len(s.m))
	for key, st := range s.m {
		if r := s.rebinding[key]; r.failed && now.Sub(r.asked) < rebindTime {
			st.Up, st.Since, st.Problem = false, r.asked, "the relay does not answer over UDP"
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b State) int {
		return cmp.Or(cmp.Compare(a.Relay, b.Relay), cmp.Compare(a.Transport, b.Transport))
	})
	return out
}
