package flow

import "slices"

// segment is one retained data frame: its header and payload stand together in c.
type segment struct {
	c   *chunk
	off uint64
	n   int
}

// segments is the ordered list of retained data frames. Dropping from the front is
// amortised O(1).
type segments struct {
	list []segment
	head int
	mem  int // bytes of chunk memory in the list
}

func (s *segments) len() int         { return len(s.list) - s.head }
func (s *segments) at(i int) segment { return s.list[s.head+i] }

func (s *segments) push(x segment) {
	if s.head > 32 && s.head*2 > len(s.list) {
		s.list = slices.Delete(s.list, 0, s.head)
		s.head = 0
	}
	s.list = append(s.list, x)
	s.mem += len(x.c.mem)
}

// before counts the leading segments that end at or before off.
func (s *segments) before(off uint64) int {
	n := 0
	for n < s.len() && s.at(n).off+uint64(s.at(n).n) <= off {
		n++
	}
	return n
}

// drop releases the first n segments.
func (s *segments) drop(n int) {
	for i := s.head; i < s.head+n; i++ {
		s.mem -= len(s.list[i].c.mem)
		s.list[i].c.release()
		s.list[i] = segment{}
	}
	s.head += n
	if s.head == len(s.list) {
		s.list, s.head = s.list[:0], 0
	}
}

// piece is received payload on its way to the program; b lies in c.
type piece struct {
	c *chunk
	b []byte
	// merged says that c belongs to this piece alone and may be filled up.
	merged bool
}

// queue holds received payload. Small payload behind other payload is copied together,
// so that a peer that sends single bytes cannot make each of them pin a chunk.
type queue struct {
	list []piece
	head int
}

// mergeBelow is the size under which copying is cheaper than an entry of its own.
const mergeBelow = 1 << 10

func (q *queue) empty() bool { return q.head == len(q.list) }

// push adds b, which lies in c, and holds c if it keeps it.
func (q *queue) push(m *Memory, c *chunk, b []byte) {
	if len(b) < mergeBelow && !q.empty() {
		q.merge(m, b)
		return
	}
	c.hold()
	q.append(piece{c: c, b: b})
}

func (q *queue) merge(m *Memory, b []byte) {
	last := &q.list[len(q.list)-1]
	if last.merged && cap(last.b)-len(last.b) >= len(b) {
		last.b = append(last.b, b...)
		return
	}
	c := m.get(mediumChunk)
	q.append(piece{c: c, b: append(c.mem[:0], b...), merged: true})
}

func (q *queue) append(p piece) {
	if q.head > 32 && q.head*2 > len(q.list) {
		q.list = slices.Delete(q.list, 0, q.head)
		q.head = 0
	}
	q.list = append(q.list, p)
}

// pop takes the first piece; the caller releases its chunk.
func (q *queue) pop() piece {
	p := q.list[q.head]
	q.list[q.head] = piece{}
	q.head++
	if q.empty() {
		q.list, q.head = q.list[:0], 0
	}
	return p
}

// unpop puts the rest of a piece back to the front.
func (q *queue) unpop(p piece) {
	p.merged = false
	if q.head > 0 {
		q.head--
		q.list[q.head] = p
		return
	}
	q.list = slices.Insert(q.list, 0, p)
}

// clear releases everything.
func (q *queue) clear() {
	for !q.empty() {
		q.pop().c.release()
	}
}
