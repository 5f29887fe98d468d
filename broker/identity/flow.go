package identity

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"

	"github.com/zitadel/oidc/v3/pkg/oidc"
)

// startFlow stores a flow and returns its id, which only the browser's address holds.
func (s *Service) startFlow(ctx context.Context, f flow) (string, error) {
	if f.Browser == "" {
		return "", oidc.ErrInvalidRequest().WithDescription("open the sign-in in a browser")
	}
	if err := s.roomFor(ctx, kindFlow); err != nil {
		return "", err
	}
	id := newToken()
	err := s.addJSON(ctx, Record{Kind: kindFlow, Key: hashKey(id), Expires: s.now().Add(flowLifetime)}, f)
	return id, err
}

// roomFor refuses new records of a kind above maxPending. Two at once may pass the bound
// by one; it protects the disk, not a rule.
func (s *Service) roomFor(ctx context.Context, kind Kind) error {
	n, err := s.store.CountRecords(ctx, kind)
	if err != nil {
		return err
	}
	if n < maxPending {
		return nil
	}
	if err := s.store.DeleteExpired(ctx, s.now()); err != nil {
		return err
	}
	if n, err = s.store.CountRecords(ctx, kind); err == nil && n >= maxPending {
		err = ErrBusy
	}
	return err
}

// loadFlow returns a flow that is still waiting: not expired, no code given out.
func (s *Service) loadFlow(ctx context.Context, id string) (flow, error) {
	r, err := s.live(s.store.Record(ctx, kindFlow, hashKey(id)))
	if err != nil {
		return flow{}, err
	}
	if r.Alt != "" {
		return flow{}, ErrNotFound
	}
	return decode[flow](r)
}

// ownFlow returns the flow id if the browser with this cookie hash started it.
func (s *Service) ownFlow(ctx context.Context, id, browser string) (flow, error) {
	f, err := s.loadFlow(ctx, id)
	if err != nil {
		return flow{}, err
	}
	if browser == "" || subtle.ConstantTimeCompare([]byte(f.Browser), []byte(browser)) != 1 {
		return flow{}, ErrNotFound
	}
	return f, nil
}

// prove notes in a flow who signed in. The first proof stays: a second person at the same
// page has to start again.
func (s *Service) prove(ctx context.Context, id string, p proof) error {
	_, err := s.store.ChangeRecord(ctx, kindFlow, hashKey(id), func(r *Record) error {
		f, err := decode[flow](*r)
		if err != nil {
			return err
		}
		if f.Proof != nil || r.Alt != "" || !s.now().Before(r.Expires) {
			return ErrNotFound
		}
		f.Proof = &p
		r.User = p.User
		r.Data, err = json.Marshal(f)
		return err
	})
	if err != nil {
		return fmt.Errorf("note sign-in: %w", err)
	}
	return nil
}

// nextPage is where a browser goes once its flow is proven.
func nextPage(id string, f flow) string {
	if f.Device != "" {
		return confirmPath + "?request=" + id
	}
	return callbackPath + "?id=" + id
}
