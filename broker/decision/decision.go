// Package decision keeps the policy revision in force and answers requests with recorded
// decisions. It is the thin layer with a clock and a store around the pure broker/policy:
// the session and grant parts of the broker ask it, the admin API publishes through it.
//
// A decision that grants is durable before Decide returns; when it cannot be stored, the
// answer is deny. A refusal never waits for the store: Run writes it behind the answer, with
// its remedies. A revision that does not load leaves the one in force.
//
// A Service is safe for concurrent use. Run must run for refusals to be recorded.
package decision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// backlog is how many refusals may wait for the store: some seconds of a scan. Beyond
	// it they are dropped and counted; the audit counts repeated denials on its own.
	backlog = 1024
	// drainTime bounds one write, and the writing of what waits when Run ends.
	drainTime = 2 * time.Second
	// maxDraws bounds the drawing of a free receipt; a second draw is already rare.
	maxDraws = 4
)

// Store is what the service needs of broker/store. A missing row is policy.ErrNotFound, a
// used receipt or revision number policy.ErrConflict.
type Store interface {
	CurrentRevision(ctx context.Context) (policy.StoredRevision, error)
	Revision(ctx context.Context, id ids.RevisionID) (policy.StoredRevision, error)
	PublishRevision(ctx context.Context, r policy.StoredRevision) error
	PutDecision(ctx context.Context, r policy.Record) error
	Decision(ctx context.Context, receipt ids.ReceiptID) (policy.Record, error)
	RecentInputs(ctx context.Context, since time.Time, limit int) ([][]byte, error)
}

// Config says what a service works with. Store and Log are required.
type Config struct {
	Store Store
	Log   *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service decides under the revision in force.
type Service struct {
	cfg     Config
	current atomic.Pointer[policy.Revision]
	swap    sync.Mutex // held while a revision is loaded or published, so that none goes back
	pending chan policy.Record
	dropped atomic.Uint64

	mu      sync.Mutex                      // guards waiting
	waiting map[ids.ReceiptID]policy.Record // what pending holds, by receipt: people ask at once
}

// New returns a service without a revision: it denies everything until Load or Publish.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Log == nil {
		return nil, errors.New("decision: Store and Log are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Log = cfg.Log.With("component", "decision")
	return &Service{cfg: cfg, pending: make(chan policy.Record, backlog), waiting: map[ids.ReceiptID]policy.Record{}}, nil
}

// Load takes the newest published revision into force; call it at the start and whenever the
// store says that the policy changed. Without any published revision everything is denied.
// On an error the revision in force stays.
func (s *Service) Load(ctx context.Context) error {
	s.swap.Lock()
	defer s.swap.Unlock()
	stored, err := s.cfg.Store.CurrentRevision(ctx)
	if errors.Is(err, policy.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load policy: %w", err)
	}
	if cur := s.current.Load(); cur != nil && (cur.ID == stored.ID || cur.Number > stored.Number) {
		return nil
	}
	rev, err := restore(stored)
	if err != nil {
		return fmt.Errorf("load policy revision %d: %w", stored.Number, err)
	}
	s.put(rev)
	return nil
}

// restore compiles a stored revision and checks that it is what was published.
func restore(stored policy.StoredRevision) (*policy.Revision, error) {
	doc, err := policy.DecodeDocument(stored.Document)
	if err != nil {
		return nil, err
	}
	rev, err := policy.Compile(stored.Meta, doc)
	if err != nil {
		return nil, err
	}
	if rev.Hash != stored.Hash {
		return nil, fmt.Errorf("its document has hash %s, not %s", rev.Hash, stored.Hash)
	}
	return rev, nil
}

func (s *Service) put(rev *policy.Revision) {
	s.current.Store(rev)
	s.cfg.Log.Info("policy in force", "revision", rev.Number)
}

// Current returns the revision in force, nil before the first.
func (s *Service) Current() *policy.Revision { return s.current.Load() }

// Publish compiles the document, stores it as the next revision and takes it into force. A
// document that does not compile (*policy.CompileError) changes nothing. When another broker
// published first, policy.ErrConflict comes back and the caller previews again.
func (s *Service) Publish(ctx context.Context, doc policy.Document, by, comment string) (*policy.Revision, error) {
	if err := s.Load(ctx); err != nil {
		return nil, err
	}
	s.swap.Lock()
	defer s.swap.Unlock()
	meta := policy.Meta{ID: ids.New[ids.RevisionID](), Number: 1, PublishedAt: s.cfg.Now().UTC().Truncate(time.Millisecond), PublishedBy: by, Comment: comment}
	if cur := s.current.Load(); cur != nil {
		meta.Number = cur.Number + 1
	}
	rev, err := policy.Compile(meta, doc)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Store.PublishRevision(ctx, rev.Stored()); err != nil {
		return nil, err
	}
	s.put(rev)
	return rev, nil
}

// Preview compiles the document and says what it would change for the requests decided since
// a time, at most limit of them. skipped counts inputs that could not be replayed.
func (s *Service) Preview(ctx context.Context, doc policy.Document, since time.Time, limit int) (changes []policy.Change, skipped int, err error) {
	rev, err := policy.Compile(policy.Meta{}, doc)
	if err != nil {
		return nil, 0, err
	}
	inputs, err := s.cfg.Store.RecentInputs(ctx, since, limit)
	if err != nil {
		return nil, 0, err
	}
	changes, skipped = policy.Preview(s.current.Load(), rev, inputs)
	return changes, skipped, nil
}

// Decide answers a request and gives it a receipt. The time of the input is set here. The
// error says that a granting decision could not be recorded; the record then denies, and its
// receipt is not in the store.
func (s *Service) Decide(ctx context.Context, in policy.Input) (policy.Record, error) {
	rec := s.decide(in)
	if !rec.Decision.Verdict.Grants() {
		s.later(rec)
		return rec, nil
	}
	rec, err := s.record(ctx, rec)
	if err != nil {
		s.cfg.Log.Error("decision not recorded, access denied", "receipt", rec.Receipt, "error", err)
		rec.Decision = policy.Refuse(rec.Time, policy.CodeNotRecorded)
		return rec, fmt.Errorf("record decision: %w", err)
	}
	return rec, nil
}

// decide asks the revision in force about the input at this moment.
func (s *Service) decide(in policy.Input) policy.Record {
	rev := s.current.Load()
	in.Version, in.Time = policy.InputVersion, s.cfg.Now().UTC().Truncate(time.Millisecond)
	rec := policy.Record{Receipt: ids.NewReceipt(), Time: in.Time, User: in.Identity.User, Device: in.Device.ID,
		Session: in.Identity.Session, App: in.App.ID, Decision: rev.Decide(in)}
	if rev != nil {
		rec.Revision = rev.ID
	}
	canonical, err := in.Canonical()
	if err != nil {
		if rec.Decision.Verdict.Grants() { // too large to keep: it could not be replayed
			rec.Decision = policy.Refuse(rec.Time, policy.CodeInvalidInput)
		}
		return rec
	}
	rec.Input = canonical
	return rec
}

// record stores the record, under another receipt when the drawn one is taken.
func (s *Service) record(ctx context.Context, rec policy.Record) (policy.Record, error) {
	for draw := 1; ; draw++ {
		err := s.cfg.Store.PutDecision(ctx, rec)
		if err == nil || draw == maxDraws || !errors.Is(err, policy.ErrConflict) {
			return rec, err
		}
		rec.Receipt = ids.NewReceipt()
	}
}

// later hands a refusal to Run. A full backlog drops the newest and counts it.
func (s *Service) later(rec policy.Record) {
	s.mu.Lock()
	s.waiting[rec.Receipt] = rec // before Run can take it
	s.mu.Unlock()
	select {
	case s.pending <- rec:
	default:
		s.forget(rec.Receipt)
		s.dropped.Add(1)
	}
}

func (s *Service) forget(receipt ids.ReceiptID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, receipt)
}

// Dropped returns how many refusals were not recorded because the store was too slow.
func (s *Service) Dropped() uint64 { return s.dropped.Load() }

// Run records refusals until ctx ends, then what still waits, within drainTime. A record that
// is being written when ctx ends is finished.
func (s *Service) Run(ctx context.Context) error {
	keep := context.WithoutCancel(ctx)
	for {
		select {
		case rec := <-s.pending:
			s.write(keep, rec)
		case <-ctx.Done():
			s.drain(keep)
			return nil
		}
	}
}

func (s *Service) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	for ctx.Err() == nil {
		select {
		case rec := <-s.pending:
			s.write(ctx, rec)
		default:
			return
		}
	}
}

// write works out the remedies of a refusal and records both. A taken receipt cannot be
// changed any more, the answer is out: such a record is lost and logged.
func (s *Service) write(ctx context.Context, rec policy.Record) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	defer s.forget(rec.Receipt)
	rec.Remedies = s.Remedies(rec)
	if err := s.cfg.Store.PutDecision(ctx, rec); err != nil {
		s.dropped.Add(1)
		s.cfg.Log.Warn("refusal not recorded", "receipt", rec.Receipt, "error", err)
	}
}

// Remedies works out what would flip a refusal under the revision in force, the easiest
// first; nil when it granted or nothing helps. It costs some milliseconds: answer first.
func (s *Service) Remedies(rec policy.Record) []policy.Remedy {
	if rec.Remedies != nil || rec.Decision.Verdict.Grants() || len(rec.Input) == 0 {
		return rec.Remedies
	}
	in, err := policy.DecodeInput(rec.Input)
	if err != nil {
		return nil
	}
	return s.current.Load().Remedies(in)
}

// Recorded returns the decision behind a receipt, also of a refusal that this broker has
// given out and not stored yet.
func (s *Service) Recorded(ctx context.Context, receipt ids.ReceiptID) (policy.Record, error) {
	s.mu.Lock()
	rec, ok := s.waiting[receipt]
	s.mu.Unlock()
	if ok {
		return rec, nil
	}
	return s.cfg.Store.Decision(ctx, receipt)
}

// Replay decides a recorded request again under the revision of its day, and reports whether
// the answer is the recorded one.
func (s *Service) Replay(ctx context.Context, receipt ids.ReceiptID) (rec policy.Record, again policy.Decision, same bool, err error) {
	rec, err = s.cfg.Store.Decision(ctx, receipt)
	if err != nil {
		return rec, again, false, err
	}
	stored, err := s.cfg.Store.Revision(ctx, rec.Revision)
	if err != nil {
		return rec, again, false, fmt.Errorf("read revision of receipt %s: %w", receipt, err)
	}
	rev, err := restore(stored)
	if err != nil {
		return rec, again, false, fmt.Errorf("compile revision of receipt %s: %w", receipt, err)
	}
	again, err = rev.Replay(rec.Input)
	return rec, again, err == nil && again.Equal(rec.Decision), err
}
