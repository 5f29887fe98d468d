package store

import (
	"context"
	"fmt"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/proto/ids"
)

// Suffixes returns the declared name suffixes and their version.
func (s *Store) Suffixes(ctx context.Context) (list []string, version uint64, err error) {
	text, err := scanRow(ctx, s.read(ctx), func(row scanner) (text string, err error) {
		return text, row.Scan(&version, &text)
	}, `SELECT version, list FROM suffixes WHERE id = 1`)
	if err == nil {
		err = fromJSON(text, &list)
	}
	return list, version, translate("read suffixes", err, nil, nil)
}

// SetSuffixes replaces the declared suffixes of the given version.
func (s *Store) SetSuffixes(ctx context.Context, list []string, version uint64) error {
	if list == nil {
		list = []string{}
	}
	text, err := toJSON(list)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, `UPDATE suffixes SET list = $1, version = version + 1 WHERE id = 1 AND version = $2`, text, version)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("version %d: %w", version, ErrConflict)
		}
		return tx.changed(ctx, catalog.TopicSuffix, "")
	})
	return translate("set suffixes", err, nil, catalog.ErrConflict)
}

const proposalColumns = `connector_id, name, site_id, protocol, target, state, at, decided_at`

// Proposals lists all proposals, oldest first.
func (s *Store) Proposals(ctx context.Context) ([]catalog.Proposal, error) {
	list, err := scanRows(ctx, s.read(ctx), scanProposal, `SELECT `+proposalColumns+` FROM proposals ORDER BY at, connector_id, name`)
	return list, translate("list proposals", err, nil, nil)
}

// Proposal returns one proposal.
func (s *Store) Proposal(ctx context.Context, connector ids.ConnectorID, name string) (catalog.Proposal, error) {
	p, err := scanRow(ctx, s.read(ctx), scanProposal,
		`SELECT `+proposalColumns+` FROM proposals WHERE connector_id = $1 AND name = $2`, connector, name)
	return p, translate("read proposal", err, catalog.ErrNotFound, nil)
}

func scanProposal(row scanner) (catalog.Proposal, error) {
	var p catalog.Proposal
	var at, decided int64
	err := row.Scan(&p.Connector, &p.Name, &p.Site, &p.Protocol, &p.Target, &p.State, &at, &decided)
	p.At, p.DecidedAt = fromMilli(at), fromMilli(decided)
	return p, err
}

// PutProposal stores a new or changed proposal.
func (s *Store) PutProposal(ctx context.Context, p catalog.Proposal) error {
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO proposals (`+proposalColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (connector_id, name) DO UPDATE SET site_id = excluded.site_id, protocol = excluded.protocol,
				target = excluded.target, state = excluded.state, at = excluded.at, decided_at = excluded.decided_at`,
			p.Connector, p.Name, p.Site, p.Protocol, p.Target, p.State, unixMilli(p.At), unixMilli(p.DecidedAt))
		if err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicProposal, string(p.Connector))
	})
	return translate("write proposal", err, nil, nil)
}

// DeleteProposal forgets a proposal.
func (s *Store) DeleteProposal(ctx context.Context, connector ids.ConnectorID, name string) error {
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.execOne(ctx, `DELETE FROM proposals WHERE connector_id = $1 AND name = $2`, connector, name); err != nil {
			return err
		}
		return tx.changed(ctx, catalog.TopicProposal, string(connector))
	})
	return translate("delete proposal", err, catalog.ErrNotFound, nil)
}
