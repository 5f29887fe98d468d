package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/proto/ids"
)

// PutDecision stores a decision record. A receipt that exists gives ErrConflict: draw again.
func (s *Store) PutDecision(ctx context.Context, r policy.Record) error {
	decision, err := json.Marshal(r.Decision)
	if err != nil {
		return fmt.Errorf("encode decision: %w", err)
	}
	remedies, err := encodeRemedies(r.Remedies)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO decisions
			(receipt, seq, at, user_id, device, session, app, verdict, revision, input, decision, remedies)
			VALUES ($1, (SELECT COALESCE(MAX(seq), 0) + 1 FROM decisions), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
			r.Receipt, unixMilli(r.Time), r.User, r.Device, r.Session, r.App, r.Decision.Verdict.String(), r.Revision,
			string(r.Input), string(decision), remedies)
		return err
	})
	return policyError("put decision", err)
}

func encodeRemedies(list []policy.Remedy) (string, error) {
	if list == nil {
		list = []policy.Remedy{}
	}
	b, err := json.Marshal(list)
	return string(b), policyError("encode remedies", err)
}

// SetRemedies adds the remedies, which are worked out after the answer.
func (s *Store) SetRemedies(ctx context.Context, receipt ids.ReceiptID, list []policy.Remedy) error {
	text, err := encodeRemedies(list)
	if err != nil {
		return err
	}
	return policyError("set remedies", s.write(ctx, func(tx *Tx) error {
		return tx.execOne(ctx, `UPDATE decisions SET remedies = $1 WHERE receipt = $2`, text, receipt)
	}))
}

const decisionColumns = `seq, receipt, at, user_id, device, session, app, revision, input, decision, remedies`

// numbered is a record with its place in the order of arrival.
type numbered struct {
	policy.Record
	seq int64
}

// Decision returns the record of a receipt.
func (s *Store) Decision(ctx context.Context, receipt ids.ReceiptID) (policy.Record, error) {
	n, err := scanRow(ctx, s.read(ctx), scanDecision, `SELECT `+decisionColumns+` FROM decisions WHERE receipt = $1`, receipt)
	return n.Record, policyError("read decision", err)
}

func scanDecision(row scanner) (n numbered, err error) {
	var at int64
	var input, decision, remedies string
	r := &n.Record
	err = row.Scan(&n.seq, &r.Receipt, &at, &r.User, &r.Device, &r.Session, &r.App, &r.Revision, &input, &decision, &remedies)
	if err != nil {
		return numbered{}, err
	}
	r.Time, r.Input = fromMilli(at), []byte(input)
	if err := json.Unmarshal([]byte(decision), &r.Decision); err != nil {
		return numbered{}, fmt.Errorf("parse decision %s: %w", r.Receipt, err)
	}
	if err := json.Unmarshal([]byte(remedies), &r.Remedies); err != nil {
		return numbered{}, fmt.Errorf("parse remedies of %s: %w", r.Receipt, err)
	}
	return n, nil
}

// Decisions returns a page of records, newest first, and the cursor of the next page, 0 at
// the end.
func (s *Store) Decisions(ctx context.Context, f policy.Filter) (page []policy.Record, next int64, err error) {
	limit := f.Limit
	if limit <= 0 || limit > policy.MaxPage {
		limit = policy.MaxPage
	}
	where, args := decisionFilter(f)
	args = append(args, limit+1)
	query := fmt.Sprintf(`SELECT %s FROM decisions WHERE %s ORDER BY seq DESC LIMIT $%d`, decisionColumns, where, len(args))
	rows, err := scanRows(ctx, s.read(ctx), scanDecision, query, args...)
	if err != nil {
		return nil, 0, policyError("list decisions", err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = rows[limit-1].seq
	}
	for _, n := range rows {
		page = append(page, n.Record)
	}
	return page, next, nil
}

// decisionFilter writes the conditions; values stand in the arguments only.
func decisionFilter(f policy.Filter) (where string, args []any) {
	conds := []string{"1 = 1"}
	add := func(is bool, cond string, v any) {
		if is {
			args = append(args, v)
			conds = append(conds, fmt.Sprintf("%s $%d", cond, len(args)))
		}
	}
	add(f.User != "", "user_id =", string(f.User))
	add(f.Device != "", "device =", string(f.Device))
	add(f.Session != "", "session =", string(f.Session))
	add(f.App != "", "app =", string(f.App))
	add(f.Verdict != "", "verdict =", f.Verdict)
	add(!f.From.IsZero(), "at >=", unixMilli(f.From))
	add(!f.Until.IsZero(), "at <", unixMilli(f.Until))
	add(f.Before > 0, "seq <", f.Before)
	return strings.Join(conds, " AND "), args
}

// RecentInputs returns the canonical inputs of the newest decisions since a time, newest
// first, for the preview of a publication.
func (s *Store) RecentInputs(ctx context.Context, since time.Time, limit int) ([][]byte, error) {
	list, err := scanRows(ctx, s.read(ctx), scanOne[string],
		`SELECT input FROM decisions WHERE at >= $1 AND input <> '' ORDER BY seq DESC LIMIT $2`, unixMilli(since), limit)
	out := make([][]byte, len(list))
	for i, text := range list {
		out[i] = []byte(text)
	}
	return out, policyError("read recent inputs", err)
}

// PruneDecisions removes records older than before and returns how many.
func (s *Store) PruneDecisions(ctx context.Context, before time.Time) (n int64, err error) {
	err = s.write(ctx, func(tx *Tx) error {
		n, err = tx.exec(ctx, `DELETE FROM decisions WHERE at < $1`, unixMilli(before))
		return err
	})
	return n, policyError("prune decisions", err)
}
