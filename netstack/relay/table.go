package relay

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/postern-zt/postern/proto/ticket"
)

// shardCount spreads writers and bounds what one write copies; handles are random, so
// their low bits are the shard.
const shardCount = 256

// table maps handles to values. Reads take no lock and allocate nothing; a write copies
// its shard, which at 100,000 entries is 400 of them, and writes are binds.
type table[V any] struct {
	shards [shardCount]shard[V]
	size   atomic.Int64
}

type shard[V any] struct {
	mu sync.Mutex // serialises writers
	m  atomic.Pointer[map[ticket.Handle]*V]
}

func newTable[V any]() *table[V] {
	t := new(table[V])
	for i := range t.shards {
		t.shards[i].m.Store(&map[ticket.Handle]*V{})
	}
	return t
}

func (t *table[V]) shard(h ticket.Handle) *shard[V] { return &t.shards[h%shardCount] }

// get returns nil for an unknown handle.
func (t *table[V]) get(h ticket.Handle) *V { return (*t.shard(h).m.Load())[h] }

// add stores v unless the handle is known or the table holds limit entries; it returns
// what is stored for h afterwards, nil when there was no room.
func (t *table[V]) add(h ticket.Handle, v *V, limit int) *V {
	s := t.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := (*s.m.Load())[h]; old != nil {
		return old
	}
	if t.size.Load() >= int64(limit) {
		return nil
	}
	m := maps.Clone(*s.m.Load())
	m[h] = v
	s.m.Store(&m)
	t.size.Add(1)
	return v
}

// remove deletes the handle if it still holds v.
func (t *table[V]) remove(h ticket.Handle, v *V) {
	s := t.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if v == nil || (*s.m.Load())[h] != v {
		return
	}
	m := maps.Clone(*s.m.Load())
	delete(m, h)
	s.m.Store(&m)
	t.size.Add(-1)
}

// all calls f for every entry of a snapshot; f may change the table.
func (t *table[V]) all(f func(ticket.Handle, *V)) {
	for i := range t.shards {
		for h, v := range *t.shards[i].m.Load() {
			f(h, v)
		}
	}
}
