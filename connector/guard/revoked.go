package guard

import (
	"time"

	"github.com/postern-zt/postern/proto/grant"
)

// longestGrant is the longest life of a grant that this connector accepts, and so how
// long a revocation must be remembered.
const longestGrant = 48 * time.Hour

// target is what a revocation names.
type target struct {
	kind grant.TargetKind
	id   string
}

// revoked remembers revocations so that a grant is looked up in constant time. The zero
// value is ready.
type revoked struct {
	byTarget map[target]time.Time
	// everything is the newest revocation of a kind that this build does not know: it
	// ends every grant issued before it.
	everything time.Time
}

func (r *revoked) add(rev grant.Revocation) {
	if rev.Kind < grant.TargetUser || rev.Kind > grant.TargetApp {
		r.everything = later(r.everything, rev.At)
		return
	}
	if r.byTarget == nil {
		r.byTarget = make(map[target]time.Time)
	}
	key := target{rev.Kind, rev.Target}
	r.byTarget[key] = later(r.byTarget[key], rev.At)
}

func (r *revoked) matches(g *grant.Grant) bool {
	if !r.everything.IsZero() && !g.NotBefore.After(r.everything) {
		return true
	}
	for _, t := range []target{
		{grant.TargetUser, string(g.User)},
		{grant.TargetDevice, g.PeerKey.String()},
		{grant.TargetSession, string(g.Session)},
		{grant.TargetGrant, string(g.ID)},
		{grant.TargetApp, string(g.App)},
	} {
		if at, ok := r.byTarget[t]; ok && !g.NotBefore.After(at) {
			return true
		}
	}
	return false
}

// prune forgets revocations older than limit: every grant they could match has ended.
func (r *revoked) prune(limit time.Time) {
	for t, at := range r.byTarget {
		if at.Before(limit) {
			delete(r.byTarget, t)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
