package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/proto/ids"
)

// Topics of the change events of policy.
const (
	TopicPolicyDraft = "policy_draft" // key: a rule's id, or "settings"
	TopicPolicy      = "policy"       // key: the id of the revision that is now in force
)

// PutRule stores a rule of the draft, new or changed. It decides nothing before it is published.
func (s *Store) PutRule(ctx context.Context, r policy.Rule) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode rule: %w", err)
	}
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO policy_rules (id, name, rule, updated_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, rule = excluded.rule, updated_at = excluded.updated_at`,
			r.ID, r.Name, string(text), unixMilli(time.Now()))
		return tx.policyChanged(ctx, err, TopicPolicyDraft, string(r.ID))
	})
	return policyError("put rule", err)
}

// policyChanged appends a change event unless something failed before.
func (tx *Tx) policyChanged(ctx context.Context, err error, topic, key string) error {
	if err != nil {
		return err
	}
	_, err = tx.Change(ctx, topic, key)
	return err
}

// policyError puts the policy's sentinel beside ours.
func policyError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%s: %w: %w", what, policy.ErrNotFound, err)
	case errors.Is(err, ErrConflict):
		return fmt.Errorf("%s: %w: %w", what, policy.ErrConflict, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// Rule returns a rule of the draft.
func (s *Store) Rule(ctx context.Context, id ids.RuleID) (policy.Rule, error) {
	r, err := scanRow(ctx, s.read(ctx), scanRule, `SELECT rule FROM policy_rules WHERE id = $1`, id)
	return r, policyError("read rule", err)
}

// Rules returns the draft's rules by name.
func (s *Store) Rules(ctx context.Context) ([]policy.Rule, error) {
	list, err := scanRows(ctx, s.read(ctx), scanRule, `SELECT rule FROM policy_rules ORDER BY name, id`)
	return list, policyError("list rules", err)
}

func scanRule(row scanner) (policy.Rule, error) {
	var text string
	if err := row.Scan(&text); err != nil {
		return policy.Rule{}, err
	}
	return policy.DecodeRule([]byte(text))
}

// DeleteRule removes a rule from the draft.
func (s *Store) DeleteRule(ctx context.Context, id ids.RuleID) error {
	err := s.write(ctx, func(tx *Tx) error {
		err := tx.execOne(ctx, `DELETE FROM policy_rules WHERE id = $1`, id)
		return tx.policyChanged(ctx, err, TopicPolicyDraft, string(id))
	})
	return policyError("delete rule", err)
}

// SetPolicySettings stores the draft's schedules, attributes, baseline and trust table; the
// rules of doc are not looked at.
func (s *Store) SetPolicySettings(ctx context.Context, doc policy.Document) error {
	doc.Rules = []policy.Rule{}
	text, err := policy.EncodeDocument(doc)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO policy_settings (id, settings, updated_at) VALUES (1, $1, $2)
			ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, updated_at = excluded.updated_at`,
			string(text), unixMilli(time.Now()))
		return tx.policyChanged(ctx, err, TopicPolicyDraft, "settings")
	})
	return policyError("set policy settings", err)
}

// PolicyDraft returns the document that a publication would take: the settings, or those of
// a new installation, with all rules.
func (s *Store) PolicyDraft(ctx context.Context) (policy.Document, error) {
	text, err := scanRow(ctx, s.read(ctx), scanOne[string], `SELECT settings FROM policy_settings WHERE id = 1`)
	doc := policy.NewDocument()
	if err == nil {
		doc, err = policy.DecodeDocument([]byte(text))
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return policy.Document{}, policyError("read policy settings", err)
	}
	rules, err := s.Rules(ctx)
	if err != nil {
		return policy.Document{}, err
	}
	if rules != nil {
		doc.Rules = rules
	}
	return doc, nil
}

// PublishRevision stores a revision, from then on the one in force. Its number must follow
// the last one: two who publish at once get one ErrConflict.
func (s *Store) PublishRevision(ctx context.Context, r policy.StoredRevision) error {
	err := s.write(ctx, func(tx *Tx) error {
		last, err := scanRow(ctx, tx, scanOne[int64], `SELECT COALESCE(MAX(number), 0) FROM policy_revisions`)
		if err != nil {
			return err
		}
		if r.Number != last+1 {
			return fmt.Errorf("revision %d does not follow %d: %w", r.Number, last, ErrConflict)
		}
		_, err = tx.exec(ctx, `INSERT INTO policy_revisions (id, number, hash, published_at, published_by, comment, document)
			VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			r.ID, r.Number, r.Hash, unixMilli(r.PublishedAt), r.PublishedBy, r.Comment, string(r.Document))
		return tx.policyChanged(ctx, err, TopicPolicy, string(r.ID))
	})
	return policyError("publish revision", err)
}

const revisionColumns = `id, number, hash, published_at, published_by, comment, document`

// CurrentRevision returns the revision in force, or ErrNotFound before the first.
func (s *Store) CurrentRevision(ctx context.Context) (policy.StoredRevision, error) {
	r, err := scanRow(ctx, s.read(ctx), scanRevision,
		`SELECT `+revisionColumns+` FROM policy_revisions ORDER BY number DESC LIMIT 1`)
	return r, policyError("read current revision", err)
}

// Revision returns one revision.
func (s *Store) Revision(ctx context.Context, id ids.RevisionID) (policy.StoredRevision, error) {
	r, err := scanRow(ctx, s.read(ctx), scanRevision, `SELECT `+revisionColumns+` FROM policy_revisions WHERE id = $1`, id)
	return r, policyError("read revision", err)
}

// Revisions returns up to policy.MaxPage revisions without their documents, newest first,
// with a number below before (0: all).
func (s *Store) Revisions(ctx context.Context, before int64) ([]policy.StoredRevision, error) {
	list, err := scanRows(ctx, s.read(ctx), scanRevision,
		`SELECT id, number, hash, published_at, published_by, comment, '' FROM policy_revisions
		WHERE $1 = 0 OR number < $1 ORDER BY number DESC LIMIT $2`, before, policy.MaxPage)
	return list, policyError("list revisions", err)
}

func scanRevision(row scanner) (r policy.StoredRevision, err error) {
	var at int64
	var document string
	err = row.Scan(&r.ID, &r.Number, &r.Hash, &at, &r.PublishedBy, &r.Comment, &document)
	r.PublishedAt, r.Document = fromMilli(at), []byte(document)
	return r, err
}
