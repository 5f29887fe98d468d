package chain

import (
	"fmt"
	"slices"
	"time"
)

const (
	// maxHeads bounds a Memory: two heads for each of several brokers.
	maxHeads = 16
	// lossShown is how long a loss is told; by then somebody has looked, or will not.
	lossShown = 30 * 24 * time.Hour
)

// Memory is what somebody outside remembers of the brokers' audit, so that a chain that was
// cut or rewritten shows even when everything at the broker fits together (decisions rule 31).
// Of each chain it holds the head that was compared last and the newest one. It is a value for
// a state file; the zero Memory remembers nothing. Its owner guards it.
type Memory struct {
	Heads []Head `json:"heads,omitempty"` // of one writer in ascending order
	Lost  *Loss  `json:"lost,omitempty"`  // the last one
}

// Loss says that a head that was remembered is gone.
type Loss struct {
	Head   Head   `json:"head"`
	AtMS   int64  `json:"at_ms"`
	Reason string `json:"reason"`
}

// Text says it to a person.
func (l Loss) Text() string {
	return fmt.Sprintf("the broker's audit has lost records (found on %s): %s. A broker that was restored from a backup shows this too; tell an administrator: %s",
		time.UnixMilli(l.AtMS).UTC().Format(time.DateOnly), l.Reason, l.Head)
}

// Answer is what the broker has under the number of a remembered head.
type Answer struct {
	Head          // the zero Hash: there is no such record
	Archived bool // the record left the store inside a signed segment
}

// Compare takes the broker's answers about remembered heads, and reports whether something is
// lost. Heads that it did not answer for stay.
func (m *Memory) Compare(answers []Answer, now time.Time) (lost bool) {
	for _, a := range answers {
		i := slices.IndexFunc(m.Heads, func(h Head) bool { return h.Writer == a.Writer && h.Seq == a.Seq })
		if i < 0 || a.Archived {
			continue
		}
		switch known := m.Heads[i]; {
		case a.Hash == (Hash{}):
			m.lose(known, fmt.Sprintf("record %d is not there any more", known.Seq), now)
			lost = true
		case a.Hash != known.Hash:
			m.lose(known, fmt.Sprintf("record %d is another one now", known.Seq), now)
			lost = true
		default: // each record holds the hash of the one before: it covers all before it
			m.Heads = slices.DeleteFunc(m.Heads, func(h Head) bool { return h.Writer == known.Writer && h.Seq < known.Seq })
		}
	}
	return lost
}

// Remember keeps a head that the broker has just told, and reports whether it contradicts one
// of before.
func (m *Memory) Remember(h Head, now time.Time) (lost bool) {
	if h.Writer == "" || len(h.Writer) > maxField || h.Seq == 0 || h.Hash == (Hash{}) {
		return false
	}
	if newest, ok := m.newest(h.Writer); ok {
		switch {
		case h == newest:
			return false
		case h.Seq == newest.Seq:
			m.lose(newest, fmt.Sprintf("record %d is another one now", h.Seq), now)
			lost = true
		case h.Seq < newest.Seq:
			m.lose(newest, fmt.Sprintf("it ends at record %d, and had %d", h.Seq, newest.Seq), now)
			lost = true
		}
	}
	m.add(h)
	return lost
}

// add appends a head: the first one of its writer stays until it was compared.
func (m *Memory) add(h Head) {
	same := func(k Head) bool { return k.Writer == h.Writer }
	if first := slices.IndexFunc(m.Heads, same); first >= 0 {
		kept := 0
		m.Heads = slices.DeleteFunc(m.Heads, func(k Head) bool {
			if same(k) {
				kept++
			}
			return same(k) && kept > 1
		})
	}
	m.Heads = append(m.Heads, h)
	if n := len(m.Heads); n > maxHeads {
		m.Heads = slices.Delete(m.Heads, 0, n-maxHeads)
	}
}

// lose notes a loss. What was remembered of that chain is void: the loss is told once, and
// the chain is remembered anew from here.
func (m *Memory) lose(known Head, reason string, now time.Time) {
	m.Lost = &Loss{Head: known, AtMS: now.UnixMilli(), Reason: reason}
	m.Heads = slices.DeleteFunc(m.Heads, func(h Head) bool { return h.Writer == known.Writer })
}

func (m *Memory) newest(writer string) (Head, bool) {
	for _, h := range slices.Backward(m.Heads) {
		if h.Writer == writer {
			return h, true
		}
	}
	return Head{}, false
}

// Loss returns the last loss as long as it is to be told.
func (m *Memory) Loss(now time.Time) (Loss, bool) {
	if m.Lost == nil || now.Sub(time.UnixMilli(m.Lost.AtMS)) > lossShown {
		return Loss{}, false
	}
	return *m.Lost, true
}
