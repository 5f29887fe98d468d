package link

import "sync/atomic"

// lineRef is the line that a UDP flow uses at present; nil while it is detached.
type lineRef struct{ p atomic.Pointer[clientLine] }

func (r *lineRef) get() *clientLine  { return r.p.Load() }
func (r *lineRef) set(l *clientLine) { r.p.Store(l) }
