package flow

import (
	"sync"
	"sync/atomic"

	"github.com/postern-zt/postern/proto/frame"
)

const (
	// FloorWindow is what every flow may always have in flight (rule 17).
	FloorWindow = 64 << 10
	// MaxWindow is the most that one flow retains or receives ahead: the bandwidth-delay
	// product of 1 Gbit/s at 32 ms; it must stay below the carriers' stream windows.
	MaxWindow = 4 << 20
	// startWindow lets a short exchange finish without an ack.
	startWindow = 256 << 10
	// DefaultMemory is the budget of a process when none is configured.
	DefaultMemory = 256 << 20
)

// The size classes of chunks: a flow reads small until a read fills its chunk, so that an
// idle or interactive flow costs 2 KiB and a bulk flow makes few, large writes.
const (
	smallChunk  = 2 << 10
	mediumChunk = 16 << 10
	largeChunk  = frame.ChunkLen
)

// Memory is the budget and the pool of chunks of one process; all flows share one. It
// only ever gives backpressure: a flow gets a share, never less than FloorWindow. It is
// safe for concurrent use.
type Memory struct {
	total int64
	flows atomic.Int64 // hot and independent of any flow's lock
	small, medium,
	large sync.Pool
}

// NewMemory returns a budget of total bytes; zero means DefaultMemory.
func NewMemory(total int64) *Memory {
	if total <= 0 {
		total = DefaultMemory
	}
	return &Memory{total: total}
}

// Flows is the number of flows that share the budget at present.
func (m *Memory) Flows() int { return int(m.flows.Load()) }

// share is what one flow may hold in each direction at present.
func (m *Memory) share() int {
	n := max(m.flows.Load(), 1) * 2
	return int(min(max(m.total/n, FloorWindow), MaxWindow))
}

// chunk is pooled memory with a count of its users: the list of retained bytes, a
// writer that is sending it, slices in a receive queue.
type chunk struct {
	mem  []byte
	refs atomic.Int32
	home *sync.Pool
}

func (m *Memory) get(size int) *chunk {
	pool, n := &m.small, smallChunk
	switch {
	case size > mediumChunk:
		pool, n = &m.large, largeChunk
	case size > smallChunk:
		pool, n = &m.medium, mediumChunk
	}
	c, ok := pool.Get().(*chunk)
	if !ok {
		c = &chunk{mem: make([]byte, n), home: pool}
	}
	c.refs.Store(1)
	return c
}

func (c *chunk) hold() { c.refs.Add(1) }

// release gives up one use; the last one returns the chunk to its pool.
func (c *chunk) release() {
	switch n := c.refs.Add(-1); {
	case n == 0:
		c.home.Put(c)
	case n < 0:
		panic("flow: chunk released twice")
	}
}
