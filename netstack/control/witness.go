package control

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// Witness remembers the ends of the broker's audit for a client or a connector, and says
// loudly when what it remembers is gone (decisions rule 31). A nil Witness remembers nothing.
// It is safe for concurrent use.
type Witness struct {
	save func(chain.Memory) error
	log  *slog.Logger

	mu     sync.Mutex // guards memory
	memory chain.Memory
}

// NewWitness returns one that remembers what load gives, and stores each change with save. A
// memory that cannot be read is lost, which is said; it keeps nobody from working.
func NewWitness(load func() (chain.Memory, error), save func(chain.Memory) error, log *slog.Logger) *Witness {
	memory, err := load()
	if err != nil {
		log.Error("remembered audit heads not readable, beginning anew", "error", err)
		memory = chain.Memory{}
	}
	return &Witness{memory: memory, save: save, log: log}
}

// Asked is what to ask the broker about. The hashes stay here: it must know them.
func (w *Witness) Asked() []*controlv1.AuditHead {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*controlv1.AuditHead
	for _, h := range w.memory.Heads {
		out = append(out, &controlv1.AuditHead{Writer: h.Writer, Seq: h.Seq})
	}
	return out
}

// Take compares what the broker tells with what is remembered, and remembers it. One
// goroutine calls it.
func (w *Witness) Take(ctx context.Context, told *controlv1.AuditHeads) {
	if w == nil {
		return
	}
	memory, lost := w.compare(told, time.Now())
	if lost {
		w.log.ErrorContext(ctx, "the broker's audit has lost records", "reason", memory.Lost.Reason, "hash", memory.Lost.Head.String())
	}
	if err := w.save(memory); err != nil {
		w.log.WarnContext(ctx, "audit heads not stored", "error", err)
	}
}

// compare returns a copy of what is remembered now.
func (w *Witness) compare(told *controlv1.AuditHeads, now time.Time) (_ chain.Memory, lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var answers []chain.Answer
	for _, a := range told.GetRemembered() {
		answers = append(answers, chain.Answer{Head: headOf(a), Archived: a.GetArchived()})
	}
	lost = w.memory.Compare(answers, now)
	if h := told.GetHead(); h != nil {
		lost = w.memory.Remember(headOf(h), now) || lost
	}
	return chain.Memory{Heads: slices.Clone(w.memory.Heads), Lost: w.memory.Lost}, lost
}

// headOf takes a head from the wire; a hash of another length is none.
func headOf(a *controlv1.AuditHead) chain.Head {
	h := chain.Head{Writer: a.GetWriter(), Seq: a.GetSeq()}
	if len(a.GetHash()) == len(h.Hash) {
		h.Hash = chain.Hash(a.GetHash())
	}
	return h
}

// Heads are the remembered ends, as `postern-broker audit verify --head` takes them.
func (w *Witness) Heads() []string {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, h := range w.memory.Heads {
		out = append(out, h.String())
	}
	return out
}

// Problem is a loss to tell a person; empty without one.
func (w *Witness) Problem() string {
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l, told := w.memory.Loss(time.Now())
	if !told {
		return ""
	}
	return l.Text()
}
