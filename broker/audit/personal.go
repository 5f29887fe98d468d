package audit

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/keys"
	"github.com/postern-zt/postern/proto/ids"
)

// personKeyLen is the length of a per-user key: AES-256.
const personKeyLen = 32

// PersonKey is the key under which the personal values of one user are sealed. Values of
// nobody known (a sign-in with an unknown name) share the key of the empty user.
type PersonKey struct {
	ID      string // of the keys.Box
	User    ids.UserID
	Sealed  string // the key itself, sealed by the Sealer
	Created time.Time
}

func (k PersonKey) context() string { return "audit person\x00" + string(k.User) }

func personalContext(r *Record) string {
	return fmt.Sprintf("audit personal\x00%s\x00%d\x00%s", r.Writer, r.Seq, r.User)
}

// sealPersonal moves r.Personal into r.Sealed.
func (l *Log) sealPersonal(ctx context.Context, r *Record) error {
	if len(r.Personal) == 0 {
		return nil
	}
	box, err := l.personBox(ctx, r.User)
	if err != nil {
		return fmt.Errorf("seal personal values: %w", err)
	}
	plain, err := json.Marshal(r.Personal)
	if err != nil {
		return fmt.Errorf("seal personal values: %w", err)
	}
	r.Sealed, r.Personal = box.Seal(personalContext(r), plain), nil
	return nil
}

// personBox returns the user's box and makes one when there is none.
func (l *Log) personBox(ctx context.Context, user ids.UserID) (*keys.Box, error) {
	k, err := l.cfg.Store.PersonKey(ctx, user)
	if err != nil {
		return nil, err
	}
	if k.ID != "" {
		return l.openPerson(k)
	}
	raw := make([]byte, personKeyLen)
	rand.Read(raw)
	box, err := keys.ParseBox(raw)
	if err != nil {
		return nil, err
	}
	k = PersonKey{ID: box.ID(), User: user, Created: time.Now()}
	k.Sealed = l.cfg.Sealer.Seal(k.context(), raw)
	return box, l.cfg.Store.AddPersonKey(ctx, k)
}

func (l *Log) openPerson(k PersonKey) (*keys.Box, error) {
	raw, err := l.cfg.Sealer.Open(k.context(), k.Sealed)
	if err != nil {
		return nil, err
	}
	return keys.ParseBox(raw)
}

// Personal opens the personal values of a record; ErrErased after Erase, nil for a record
// without any.
func (l *Log) Personal(ctx context.Context, r Record) (map[string]string, error) {
	if r.Sealed == "" {
		return nil, nil
	}
	id, err := keys.BoxIDOf(r.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open personal values: %w", err)
	}
	k, err := l.cfg.Store.PersonKeyByID(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("open personal values: %w", err)
	}
	if k.ID == "" || k.User != r.User {
		return nil, ErrErased
	}
	return l.openWith(k, &r)
}

func (l *Log) openWith(k PersonKey, r *Record) (map[string]string, error) {
	box, err := l.openPerson(k)
	if err != nil {
		return nil, fmt.Errorf("open personal values: %w", err)
	}
	plain, err := box.Open(personalContext(r), r.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open personal values: %w", err)
	}
	var values map[string]string
	if err := json.Unmarshal(plain, &values); err != nil {
		return nil, fmt.Errorf("open personal values: %w", err)
	}
	return values, nil
}

// Erase makes the personal values of user unreadable in all records, archived ones too, and
// records that by. Backups made before keep the key: they age out by their own rule.
func (l *Log) Erase(ctx context.Context, user, by ids.UserID) error {
	if _, err := l.Append(ctx, Event{Kind: Erased, User: user, Actor: by}); err != nil {
		return err
	}
	if err := l.cfg.Store.ErasePerson(ctx, user); err != nil {
		return fmt.Errorf("erase personal values: %w", err)
	}
	return nil
}
