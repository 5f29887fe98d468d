package identity

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

// invite is the data of an invitation: who may set a password with it is Record.User.
type invite struct{}

// CreateUser adds a local user and returns the invitation code with which the person sets a
// password.
func (s *Service) CreateUser(ctx context.Context, login, name, mail string) (directory.User, Code, error) {
	u, err := s.dir.CreateLocal(ctx, login, name, mail)
	if err != nil {
		return directory.User{}, Code{}, err
	}
	code, err := s.Invite(ctx, u.ID)
	return u, code, err
}

// Invite returns a new invitation code for a local user; earlier ones end. It is also the
// way back in for somebody who forgot a password.
func (s *Service) Invite(ctx context.Context, id ids.UserID) (Code, error) {
	u, err := s.localUser(ctx, id)
	if err != nil {
		return Code{}, err
	}
	if err := s.store.DeleteRecords(ctx, Filter{Kind: kindInvite, User: u.ID}); err != nil {
		return Code{}, err
	}
	code := newCode()
	err = s.addJSON(ctx, Record{
		Kind: kindInvite, Key: hashKey(code.Reveal()), User: u.ID, Expires: s.now().Add(inviteLifetime),
	}, invite{})
	return code, err
}

// NewOwnerCode returns a code that makes its bearer an owner on the set-up page; earlier ones
// end. Only somebody with rights on the broker's host may call this.
func (s *Service) NewOwnerCode(ctx context.Context) (Code, error) {
	if err := s.store.DeleteRecords(ctx, Filter{Kind: kindOwner}); err != nil {
		return Code{}, err
	}
	code := newCode()
	err := s.addJSON(ctx, Record{
		Kind: kindOwner, Key: hashKey(code.Reveal()), Expires: s.now().Add(ownerLifetime),
	}, struct{}{})
	return code, err
}

// OwnerLink returns the address to open with an owner code. It holds the code: print it on a
// terminal, never in a log.
func (s *Service) OwnerLink(c Code) Secret {
	return NewSecret(s.Issuer() + setupPath + "#" + c.Reveal())
}

// InviteLink returns the address to open with an invitation code; the same care applies.
func (s *Service) InviteLink(c Code) Secret {
	return NewSecret(s.Issuer() + invitePath + "#" + c.Reveal())
}

// SetPassword sets the password of a local user and ends the refresh tokens given out under
// the old one.
func (s *Service) SetPassword(ctx context.Context, id ids.UserID, password Secret) error {
	u, err := s.localUser(ctx, id)
	if err != nil {
		return err
	}
	if err := checkNewPassword(password, u.Login); err != nil {
		return err
	}
	encoded, err := s.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	data, err := json.Marshal(encoded)
	if err != nil {
		return err
	}
	if err := s.store.PutRecord(ctx, Record{Kind: kindPassword, Key: string(id), User: id, Data: data}); err != nil {
		return fmt.Errorf("store password: %w", err)
	}
	return s.SignOut(ctx, id)
}

// localUser refuses users whose password is somebody else's affair.
func (s *Service) localUser(ctx context.Context, id ids.UserID) (directory.User, error) {
	u, err := s.dir.User(ctx, id)
	if err != nil {
		return directory.User{}, err
	}
	if u.Issuer != directory.Local {
		return directory.User{}, fmt.Errorf("%w: the user signs in at an external issuer", directory.ErrInvalid)
	}
	return u, nil
}

// SignOut ends all refresh tokens of a user. Sessions are the session engine's to end.
func (s *Service) SignOut(ctx context.Context, id ids.UserID) error {
	return s.store.DeleteRecords(ctx, Filter{Kind: kindRefresh, User: id})
}

// Disable ends a user's access: the directory announces the change, tokens are refused from
// now on, and open invitations end. The last owner cannot be disabled.
func (s *Service) Disable(ctx context.Context, id ids.UserID) error {
	if _, err := s.dir.Disable(ctx, id); err != nil {
		return err
	}
	if err := s.SignOut(ctx, id); err != nil {
		return err
	}
	return s.store.DeleteRecords(ctx, Filter{Kind: kindInvite, User: id})
}

// Enable undoes Disable; the person signs in again.
func (s *Service) Enable(ctx context.Context, id ids.UserID) error {
	_, err := s.dir.Enable(ctx, id)
	return err
}

// AddToGroup makes a user a member of a local group.
func (s *Service) AddToGroup(ctx context.Context, user ids.UserID, group ids.GroupID) error {
	return s.dir.AddToGroup(ctx, user, group)
}

// RemoveFromGroup ends a membership in a local group.
func (s *Service) RemoveFromGroup(ctx context.Context, user ids.UserID, group ids.GroupID) error {
	return s.dir.RemoveFromGroup(ctx, user, group)
}
