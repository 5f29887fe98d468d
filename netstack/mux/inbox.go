package mux

import "sync"

// The sizes of chunks: bulk comes in TLS records of 16 KiB, everything else is small.
const (
	smallChunk = 1 << 10
	largeChunk = 16 << 10
)

// chunk is pooled memory with what was received in it: b[r:w] is unread.
type chunk struct {
	b    []byte
	r, w int
}

// chunks lends chunks to sessions; it is a pool and nothing else.
type chunks struct{ small, large sync.Pool }

// lent is shared by all sessions of the process, so that memory follows the traffic.
var lent = &chunks{
	small: sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }},
	large: sync.Pool{New: func() any { return &chunk{b: make([]byte, largeChunk)} }},
}

// sizeFor is the size of the chunk for n bytes or the first part of them.
func sizeFor(n int) int {
	if n <= smallChunk {
		return smallChunk
	}
	return largeChunk
}

func (p *chunks) get(size int) *chunk {
	if size == smallChunk {
		return p.small.Get().(*chunk)
	}
	return p.large.Get().(*chunk)
}

func (p *chunks) put(c *chunk) {
	c.r, c.w = 0, 0
	if len(c.b) == smallChunk {
		p.small.Put(c)
		return
	}
	p.large.Put(c)
}

// mergeBelow is the size under which copying is cheaper than a chunk of its own.
const mergeBelow = 4 << 10

// inbox is what a stream has received and not yet read.
type inbox struct {
	list []*chunk
	head int
	mem  int // bytes of memory in list
}

func (q *inbox) empty() bool { return q.head == len(q.list) }

// add takes over c, or copies it into the free end of the last chunk when it is small,
// so that a peer that sends few bytes at a time does not pin a chunk with each. It reports
// whether the caller keeps c.
func (q *inbox) add(c *chunk) (kept bool) {
	n := c.w - c.r
	if !q.empty() && n <= mergeBelow {
		if last := q.list[len(q.list)-1]; len(last.b)-last.w >= n {
			last.w += copy(last.b[last.w:], c.b[c.r:c.w])
			return true
		}
	}
	q.list = append(q.list, c)
	q.mem += len(c.b)
	return false
}

// take moves bytes into p.
func (q *inbox) take(p []byte) int {
	n := 0
	for n < len(p) && !q.empty() {
		c := q.list[q.head]
		m := copy(p[n:], c.b[c.r:c.w])
		n, c.r = n+m, c.r+m
		if c.r < c.w {
			break
		}
		q.list[q.head] = nil
		q.head++
		q.mem -= len(c.b)
		lent.put(c)
	}
	if q.empty() {
		q.list, q.head = q.list[:0], 0
	}
	return n
}

// clear gives everything back.
func (q *inbox) clear() {
	for _, c := range q.list[q.head:] {
		lent.put(c)
	}
	*q = inbox{}
}
