package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

var _ directory.Store = (*Store)(nil)

const userColumns = `id, issuer, subject, login, name, mail, disabled, admin, identity, verified_at,
	attributes, groups_incomplete, created_at, updated_at`

// directoryError puts the directory's sentinel beside ours.
func directoryError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%s: %w: %w", what, directory.ErrNotFound, err)
	case errors.Is(err, ErrConflict):
		return fmt.Errorf("%s: %w: %w", what, directory.ErrExists, err)
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// User returns one user with its groups.
func (s *Store) User(ctx context.Context, id ids.UserID) (directory.User, error) {
	return s.userWhere(ctx, `id = $1`, id)
}

// UserBySubject returns the user that issuer calls subject.
func (s *Store) UserBySubject(ctx context.Context, issuer ids.IssuerID, subject string) (directory.User, error) {
	return s.userWhere(ctx, `issuer = $1 AND subject = $2`, issuer, subject)
}

// UserByLogin returns the user of issuer with this login; it is unique for local users only.
func (s *Store) UserByLogin(ctx context.Context, issuer ids.IssuerID, login string) (directory.User, error) {
	return s.userWhere(ctx, `issuer = $1 AND login = $2`, issuer, login)
}

func (s *Store) userWhere(ctx context.Context, where string, args ...any) (directory.User, error) {
	u, err := readUser(ctx, s.read(ctx), where, args...)
	return u, directoryError("read user", err)
}

func readUser(ctx context.Context, q queryer, where string, args ...any) (directory.User, error) {
	u, err := scanRow(ctx, q, scanUser, `SELECT `+userColumns+` FROM users WHERE `+where, args...)
	if err != nil {
		return directory.User{}, err
	}
	u.Groups, err = scanRows(ctx, q, scanOne[ids.GroupID],
		`SELECT group_id FROM group_members WHERE user_id = $1 ORDER BY group_id`, u.ID)
	return u, err
}

// Users returns a page of users in the order of their ids.
func (s *Store) Users(ctx context.Context, query directory.Query) ([]directory.User, error) {
	q := s.read(ctx)
	list, err := scanRows(ctx, q, scanUser, `SELECT `+userColumns+` FROM users
		WHERE id > $1
			AND ($2 = '' OR id = $2 OR LOWER(login) = $2 OR LOWER(name) = $2 OR LOWER(mail) = $2)
			AND ($3 = '' OR id IN (SELECT user_id FROM group_members WHERE group_id = $3))
		ORDER BY id LIMIT $4`, string(query.After), query.Text, string(query.Group), query.Limit)
	if err != nil || len(list) == 0 {
		return nil, directoryError("list users", err)
	}
	if err := addGroups(ctx, q, list); err != nil {
		return nil, directoryError("list memberships", err)
	}
	return list, nil
}

// membership is one row of group_members.
type membership struct {
	user  ids.UserID
	group ids.GroupID
}

// addGroups fills in the groups of a page, which is sorted by id, with one query.
func addGroups(ctx context.Context, q queryer, page []directory.User) error {
	all, err := scanRows(ctx, q, func(row scanner) (m membership, err error) {
		return m, row.Scan(&m.user, &m.group)
	}, `SELECT user_id, group_id FROM group_members WHERE user_id >= $1 AND user_id <= $2 ORDER BY group_id`,
		page[0].ID, page[len(page)-1].ID)
	if err != nil {
		return err
	}
	at := make(map[ids.UserID]int, len(page))
	for i, u := range page {
		at[u.ID] = i
	}
	for _, m := range all {
		if i, ok := at[m.user]; ok {
			page[i].Groups = append(page[i].Groups, m.group)
		}
	}
	return nil
}

// CreateUser stores a user without its groups.
func (s *Store) CreateUser(ctx context.Context, u directory.User) error {
	err := s.write(ctx, func(tx *Tx) error {
		attributes, err := json.Marshal(u.Attributes)
		if err != nil {
			return err
		}
		_, err = tx.exec(ctx, `INSERT INTO users (`+userColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
			u.ID, u.Issuer, u.Subject, u.Login, u.Name, u.Mail, toBit(u.Disabled), u.Admin, u.Identity,
			unixMilli(u.VerifiedAt), string(attributes), toBit(u.GroupsIncomplete), unixMilli(u.CreatedAt), unixMilli(u.UpdatedAt))
		if err != nil {
			return err
		}
		return tx.userChanged(ctx, u.ID)
	})
	return directoryError("create user", err)
}

// ChangeUser edits a user in one transaction; change may run more than once.
func (s *Store) ChangeUser(ctx context.Context, id ids.UserID, change func(u *directory.User, activeOwners int) error) (directory.User, error) {
	var u directory.User
	err := s.write(ctx, func(tx *Tx) (err error) {
		if u, err = readUser(ctx, tx, `id = $1`, id); err != nil {
			return err
		}
		owners, err := scanRow(ctx, tx, scanOne[int],
			`SELECT COUNT(1) FROM users WHERE admin = $1 AND disabled = 0`, directory.RoleOwner)
		if err != nil {
			return err
		}
		if err := change(&u, owners); err != nil {
			return err
		}
		return tx.updateUser(ctx, id, u)
	})
	if err != nil {
		return directory.User{}, directoryError("change user", err)
	}
	return u, nil
}

func (tx *Tx) updateUser(ctx context.Context, id ids.UserID, u directory.User) error {
	attributes, err := json.Marshal(u.Attributes)
	if err != nil {
		return err
	}
	err = tx.execOne(ctx, `UPDATE users SET login = $1, name = $2, mail = $3, disabled = $4, admin = $5, identity = $6,
			verified_at = $7, attributes = $8, groups_incomplete = $9, updated_at = $10 WHERE id = $11`,
		u.Login, u.Name, u.Mail, toBit(u.Disabled), u.Admin, u.Identity, unixMilli(u.VerifiedAt),
		string(attributes), toBit(u.GroupsIncomplete), unixMilli(u.UpdatedAt), id)
	if err != nil {
		return err
	}
	return tx.userChanged(ctx, id)
}

func (tx *Tx) userChanged(ctx context.Context, id ids.UserID) error {
	_, err := tx.Change(ctx, directory.TopicUser, string(id))
	return err
}

func (tx *Tx) groupChanged(ctx context.Context, id ids.GroupID) error {
	_, err := tx.Change(ctx, directory.TopicGroup, string(id))
	return err
}

// SetSourceGroups replaces the memberships that come from source. Without a difference
// nothing is written and no change announced.
func (s *Store) SetSourceGroups(ctx context.Context, id ids.UserID, source ids.IssuerID, names []string) error {
	err := s.write(ctx, func(tx *Tx) error {
		if _, err := scanRow(ctx, tx, scanOne[string], `SELECT id FROM users WHERE id = $1`, id); err != nil {
			return err
		}
		want, err := tx.groupsNamed(ctx, source, names)
		if err != nil {
			return err
		}
		have, err := scanRows(ctx, tx, scanOne[ids.GroupID], `SELECT m.group_id FROM group_members m
			JOIN user_groups g ON g.id = m.group_id WHERE m.user_id = $1 AND g.source = $2`, id, source)
		if err != nil {
			return err
		}
		return tx.moveMember(ctx, id, have, want)
	})
	return directoryError("set groups", err)
}

// groupsNamed returns the ids of the named groups and creates those that are missing.
func (tx *Tx) groupsNamed(ctx context.Context, source ids.IssuerID, names []string) ([]ids.GroupID, error) {
	var want []ids.GroupID
	for _, name := range names {
		id, err := scanRow(ctx, tx, scanOne[ids.GroupID], `SELECT id FROM user_groups WHERE source = $1 AND name = $2`, source, name)
		if errors.Is(err, ErrNotFound) {
			id = ids.New[ids.GroupID]()
			err = tx.insertGroup(ctx, directory.Group{ID: id, Name: name, Source: source})
		}
		if err != nil {
			return nil, err
		}
		want = append(want, id)
	}
	return want, nil
}

func (tx *Tx) moveMember(ctx context.Context, user ids.UserID, have, want []ids.GroupID) error {
	changed := false
	for _, g := range have {
		if slices.Contains(want, g) {
			continue
		}
		changed = true
		if _, err := tx.exec(ctx, `DELETE FROM group_members WHERE group_id = $1 AND user_id = $2`, g, user); err != nil {
			return err
		}
	}
	for _, g := range want {
		if slices.Contains(have, g) {
			continue
		}
		changed = true
		if _, err := tx.exec(ctx, `INSERT INTO group_members (group_id, user_id) VALUES ($1, $2)`, g, user); err != nil {
			return err
		}
	}
	if !changed {
		return nil
	}
	return tx.userChanged(ctx, user)
}

func scanUser(row scanner) (directory.User, error) {
	var u directory.User
	var disabled, incomplete, verified, created, updated int64
	var attributes string
	err := row.Scan(&u.ID, &u.Issuer, &u.Subject, &u.Login, &u.Name, &u.Mail, &disabled, &u.Admin, &u.Identity,
		&verified, &attributes, &incomplete, &created, &updated)
	if err != nil {
		return directory.User{}, err
	}
	if err := json.Unmarshal([]byte(attributes), &u.Attributes); err != nil {
		return directory.User{}, fmt.Errorf("attributes of %s: %w", u.ID, err)
	}
	u.Disabled, u.GroupsIncomplete = disabled != 0, incomplete != 0
	u.VerifiedAt, u.CreatedAt, u.UpdatedAt = fromMilli(verified), fromMilli(created), fromMilli(updated)
	return u, nil
}

// toBit is how truth values are stored: the two engines agree on numbers.
func toBit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
