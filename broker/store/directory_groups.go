package store

import (
	"context"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

// Group returns one group.
func (s *Store) Group(ctx context.Context, id ids.GroupID) (directory.Group, error) {
	g, err := scanRow(ctx, s.read(ctx), scanGroup, `SELECT id, source, name FROM user_groups WHERE id = $1`, id)
	return g, directoryError("read group", err)
}

// GroupByName returns the group of a source with this name.
func (s *Store) GroupByName(ctx context.Context, source ids.IssuerID, name string) (directory.Group, error) {
	g, err := scanRow(ctx, s.read(ctx), scanGroup,
		`SELECT id, source, name FROM user_groups WHERE source = $1 AND name = $2`, source, name)
	return g, directoryError("read group", err)
}

// Groups returns all groups, by name.
func (s *Store) Groups(ctx context.Context) ([]directory.Group, error) {
	list, err := scanRows(ctx, s.read(ctx), scanGroup, `SELECT id, source, name FROM user_groups ORDER BY name, id`)
	return list, directoryError("list groups", err)
}

// CreateGroup stores a group.
func (s *Store) CreateGroup(ctx context.Context, g directory.Group) error {
	return directoryError("create group", s.write(ctx, func(tx *Tx) error { return tx.insertGroup(ctx, g) }))
}

func (tx *Tx) insertGroup(ctx context.Context, g directory.Group) error {
	_, err := tx.exec(ctx, `INSERT INTO user_groups (id, source, name) VALUES ($1, $2, $3)`, g.ID, g.Source, g.Name)
	if err != nil {
		return err
	}
	return tx.groupChanged(ctx, g.ID)
}

// DeleteGroup removes a group; each former member is announced too.
func (s *Store) DeleteGroup(ctx context.Context, id ids.GroupID) error {
	err := s.write(ctx, func(tx *Tx) error {
		members, err := scanRows(ctx, tx, scanOne[ids.UserID],
			`SELECT user_id FROM group_members WHERE group_id = $1 ORDER BY user_id`, id)
		if err != nil {
			return err
		}
		if _, err := tx.exec(ctx, `DELETE FROM group_members WHERE group_id = $1`, id); err != nil {
			return err
		}
		if err := tx.execOne(ctx, `DELETE FROM user_groups WHERE id = $1`, id); err != nil {
			return err
		}
		for _, user := range members {
			if err := tx.userChanged(ctx, user); err != nil {
				return err
			}
		}
		return tx.groupChanged(ctx, id)
	})
	return directoryError("delete group", err)
}

// AddMember makes a user a member; a member already is no error.
func (s *Store) AddMember(ctx context.Context, group ids.GroupID, user ids.UserID) error {
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.requireMemberKeys(ctx, group, user); err != nil {
			return err
		}
		n, err := tx.exec(ctx, `INSERT INTO group_members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, group, user)
		if err != nil || n == 0 {
			return err
		}
		return tx.userChanged(ctx, user)
	})
	return directoryError("add member", err)
}

// requireMemberKeys names what is missing; a broken foreign key would not.
func (tx *Tx) requireMemberKeys(ctx context.Context, group ids.GroupID, user ids.UserID) error {
	if _, err := scanRow(ctx, tx, scanOne[string], `SELECT id FROM user_groups WHERE id = $1`, group); err != nil {
		return err
	}
	_, err := scanRow(ctx, tx, scanOne[string], `SELECT id FROM users WHERE id = $1`, user)
	return err
}

// RemoveMember ends a membership; none is no error.
func (s *Store) RemoveMember(ctx context.Context, group ids.GroupID, user ids.UserID) error {
	err := s.write(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, `DELETE FROM group_members WHERE group_id = $1 AND user_id = $2`, group, user)
		if err != nil || n == 0 {
			return err
		}
		return tx.userChanged(ctx, user)
	})
	return directoryError("remove member", err)
}

func scanGroup(row scanner) (directory.Group, error) {
	var g directory.Group
	err := row.Scan(&g.ID, &g.Source, &g.Name)
	return g, err
}
