package policy

import (
	"errors"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Sentinels that a store of rules, revisions and records answers with.
var (
	// ErrNotFound: there is no such rule, revision or receipt.
	ErrNotFound = errors.New("not found in the policy")
	// ErrConflict: the receipt is taken, or another revision was published first.
	ErrConflict = errors.New("conflict in the policy")
)

// Record is a decision as it is kept: found by its receipt, replayed from Input under the
// revision.
type Record struct {
	Receipt  ids.ReceiptID  `json:"receipt"`
	Time     time.Time      `json:"time"`
	User     ids.UserID     `json:"user"`
	Device   ids.DeviceID   `json:"device"`
	Session  ids.SessionID  `json:"session"`
	App      ids.AppID      `json:"app"`
	Revision ids.RevisionID `json:"revision"` // empty when none was in force
	Decision Decision       `json:"decision"`
	Remedies []Remedy       `json:"remedies,omitempty"` // worked out after the answer
	Input    []byte         `json:"input"`              // canonical; empty when the input was malformed
}

// StoredRevision is a published revision as it is kept: enough to compile it again.
type StoredRevision struct {
	Meta
	Hash     string
	Document []byte // canonical
}

// Stored returns the form in which a revision is kept.
func (r *Revision) Stored() StoredRevision {
	return StoredRevision{Meta: r.Meta, Hash: r.Hash, Document: r.canonical}
}

// Filter selects decision records. A zero field selects all.
type Filter struct {
	User    ids.UserID
	Device  ids.DeviceID
	Session ids.SessionID
	App     ids.AppID
	Verdict string    // a verdict's word
	From    time.Time // inclusive
	Until   time.Time // exclusive
	// Before continues a listing: the cursor that the page before returned. 0: from the newest.
	Before int64
	// Limit bounds the page; 0 and everything above MaxPage mean MaxPage.
	Limit int
}

// MaxPage bounds one page of records.
const MaxPage = 500
