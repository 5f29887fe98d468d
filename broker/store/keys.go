package store

import (
	"context"
	"fmt"

	"github.com/postern-zt/postern/broker/keys"
)

var _ keys.Store = (*Store)(nil)

const keyColumns = `purpose, owner, serial, kek_id, public, sealed, created_at`

// SealedKeys returns all sealed keys, oldest first for each purpose and owner.
func (s *Store) SealedKeys(ctx context.Context) ([]keys.Sealed, error) {
	list, err := scanRows(ctx, s.read(ctx), scanKey,
		`SELECT `+keyColumns+` FROM sealed_keys ORDER BY purpose, owner, serial`)
	if err != nil {
		return nil, fmt.Errorf("list sealed keys: %w", err)
	}
	return list, nil
}

func scanKey(row scanner) (keys.Sealed, error) {
	var k keys.Sealed
	var created int64
	err := row.Scan(&k.Purpose, &k.Owner, &k.Serial, &k.KEK, &k.Public, &k.Box, &created)
	k.Created = fromMilli(created)
	return k, err
}

// AddSealedKey adds a key unless its serial is taken; added tells which. Other brokers learn
// of it as a change of topic "keys".
func (s *Store) AddSealedKey(ctx context.Context, k keys.Sealed) (added bool, err error) {
	err = s.write(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, `INSERT INTO sealed_keys (`+keyColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (purpose, owner, serial) DO NOTHING`,
			k.Purpose, k.Owner, k.Serial, k.KEK, k.Public, k.Box, unixMilli(k.Created))
		if added = n == 1; err != nil || !added {
			return err
		}
		_, err = tx.Change(ctx, "keys", string(k.Purpose))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("add key %s: %w", k.Purpose, err)
	}
	return added, nil
}

// ReplaceSealedKeys stores new boxes for existing keys, all or none.
func (s *Store) ReplaceSealedKeys(ctx context.Context, all []keys.Sealed) error {
	return s.write(ctx, func(tx *Tx) error {
		for _, k := range all {
			err := tx.execOne(ctx, `UPDATE sealed_keys SET kek_id = $1, sealed = $2
				WHERE purpose = $3 AND owner = $4 AND serial = $5`, k.KEK, k.Box, k.Purpose, k.Owner, k.Serial)
			if err != nil {
				return fmt.Errorf("replace key %s: %w", k.Purpose, err)
			}
		}
		return nil
	})
}
