package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/ids"
)

// TopicIssuer is the topic of the change events about external issuers.
const TopicIssuer = "issuer"

// Kind separates the records of Store.
type Kind string

// Kinds of records. Keys that are bearer texts are stored hashed.
const (
	kindPassword Kind = "password" // key: user id; data: argon2id in PHC form
	kindOwner    Kind = "owner"    // key: hash of the owner code
	kindInvite   Kind = "invite"   // key: hash of the invitation code; User set
	kindFlow     Kind = "flow"     // key: hash of the request id; Alt: hash of the code
	kindDevice   Kind = "device"   // key: hash of the device code; Alt: hash of the user code
	kindRefresh  Kind = "refresh"  // key: hash of the token; Family set
	kindExternal Kind = "external" // key: hash of the state sent to an issuer
	kindUpstream Kind = "upstream" // key: user id; data: sealed refresh token of the issuer
)

// Record is one row of identity state.
type Record struct {
	Kind Kind
	Key  string
	// Alt is a second unique key within the kind; empty for none.
	Alt string
	// User owns the record; empty for none.
	User ids.UserID
	// Family groups the refresh tokens that came from one sign-in.
	Family string
	// Data is JSON whose shape the kind defines.
	Data json.RawMessage
	// Expires ends the record; zero never does.
	Expires time.Time
}

// Filter selects records; empty fields match all, but not all fields may be empty.
type Filter struct {
	Kind   Kind
	User   ids.UserID
	Family string
}

// Store keeps identity records and issuers. broker/store implements it on both engines. Each
// method is one transaction. Expired records are returned like others: this package checks.
type Store interface {
	// PutRecord adds a record or replaces the one with its (Kind, Key).
	PutRecord(ctx context.Context, r Record) error
	// AddRecord adds a record; ErrExists when its (Kind, Key) or (Kind, Alt) is taken.
	AddRecord(ctx context.Context, r Record) error
	Record(ctx context.Context, kind Kind, key string) (Record, error)
	RecordByAlt(ctx context.Context, kind Kind, alt string) (Record, error)
	// TakeRecord returns a record and removes it; of two callers at once one gets ErrNotFound.
	TakeRecord(ctx context.Context, kind Kind, key string) (Record, error)
	// ChangeRecord edits a record (not its kind and key) in a transaction; an error of change
	// leaves it as it was.
	ChangeRecord(ctx context.Context, kind Kind, key string, change func(*Record) error) (Record, error)
	DeleteRecords(ctx context.Context, f Filter) error
	// CountRecords returns how many records a kind has.
	CountRecords(ctx context.Context, kind Kind) (int, error)
	// DeleteExpired removes records that ended before now.
	DeleteExpired(ctx context.Context, now time.Time) error

	PutIssuer(ctx context.Context, i StoredIssuer) error
	Issuer(ctx context.Context, id ids.IssuerID) (StoredIssuer, error)
	Issuers(ctx context.Context) ([]StoredIssuer, error)
	DeleteIssuer(ctx context.Context, id ids.IssuerID) error
}

// StoredIssuer is an issuer as it is kept: the client secret sealed.
type StoredIssuer struct {
	ID           ids.IssuerID
	Name         string
	URL          string
	ClientID     string
	SealedSecret []byte
	Scopes       []string
	Claims       directory.ClaimMap
	CreatedAt    time.Time
}

// addJSON marshals data into r and adds the record.
func (s *Service) addJSON(ctx context.Context, r Record, data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode %s record: %w", r.Kind, err)
	}
	r.Data = raw
	return s.store.AddRecord(ctx, r)
}

// live returns err, or ErrNotFound for a record whose time is over.
func (s *Service) live(r Record, err error) (Record, error) {
	if err != nil {
		return Record{}, err
	}
	if !r.Expires.IsZero() && !s.now().Before(r.Expires) {
		return Record{}, ErrNotFound
	}
	return r, nil
}

// decode reads the data of a record.
func decode[T any](r Record) (T, error) {
	var v T
	if err := json.Unmarshal(r.Data, &v); err != nil {
		return v, fmt.Errorf("decode %s record: %w", r.Kind, err)
	}
	return v, nil
}
