package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

const (
	// MaxLine bounds a record; a decision with its reasons has about 1 KiB.
	MaxLine = 16 << 10
	// maxField bounds the values that are indexed; an id has 30 characters.
	maxField   = 128
	maxDetails = 64
	version    = 1
)

// Kind says what happened.
type Kind string

// Kinds of records. Others may be written; readers show those that they do not know.
const (
	Decision     Kind = "decision"    // an allow, limited or step_up that becomes a grant
	Denied       Kind = "denied"      // repeated ones become one counted record per minute
	Granted      Kind = "granted"     // a grant was issued
	Revoked      Kind = "revoked"     // user, device, session, grant or link
	SignedIn     Kind = "signed_in"   // a session began
	SignInFailed Kind = "signin_fail" // repeated ones are counted like denials
	SignedOut    Kind = "signed_out"  // a session ended
	Enrolled     Kind = "enrolled"    // a device, connector or relay got an identity
	Changed      Kind = "changed"     // an administrator changed something
	Published    Kind = "published"   // a policy revision
	FlowOpened   Kind = "flow_open"   // written by connectors, before the dial
	FlowClosed   Kind = "flow_close"  // exactly one for each open
	Probe        Kind = "probe"       // a configured health probe
	Started      Kind = "started"     // a writer started
	Restored     Kind = "restored"    // the store was restored from a backup
	Erased       Kind = "erased"      // personal values of a user
	Dropped      Kind = "dropped"     // archived segments left the store
	Gap          Kind = "gap"         // records of a connector that never arrived
	Lost         Kind = "lost"        // best-effort records that found no room
)

// Event is what a caller records. Empty fields are left out.
type Event struct {
	Kind      Kind              `json:"kind"`
	Actor     ids.UserID        `json:"actor,omitempty"` // who did it, when not the user himself
	User      ids.UserID        `json:"user,omitempty"`
	Device    ids.DeviceID      `json:"device,omitempty"`
	Session   ids.SessionID     `json:"session,omitempty"`
	App       ids.AppID         `json:"app,omitempty"`
	Connector ids.ConnectorID   `json:"connector,omitempty"`
	Grant     ids.GrantID       `json:"grant,omitempty"`
	Receipt   ids.ReceiptID     `json:"receipt,omitempty"`
	Decision  string            `json:"decision,omitempty"`
	Reasons   []string          `json:"reasons,omitempty"`
	Revision  ids.RevisionID    `json:"revision,omitempty"`
	Count     uint64            `json:"count,omitempty"`   // how many events this record stands for, 0 means 1
	Inexact   bool              `json:"inexact,omitempty"` // made after a crash
	Details   map[string]string `json:"details,omitempty"`
	// Personal values (name, mail, address) are sealed with the key of User.
	Personal map[string]string `json:"-"`
	// Sealed is what became of Personal.
	Sealed string `json:"sealed,omitempty"`
}

// Record is an event in a chain.
type Record struct {
	V      int    `json:"v"`
	Writer string `json:"writer"`
	Seq    uint64 `json:"seq"`
	TimeMS int64  `json:"time_ms"`
	Prev   Hash   `json:"prev"`
	Event
}

// Time returns when the record was written, by the writer's clock.
func (r Record) Time() time.Time { return time.UnixMilli(r.TimeMS).UTC() }

// Hash is the hash of one record; the zero value stands before the first.
type Hash [sha256.Size]byte

// HashLine returns the hash of a record from its line, without the line feed.
func HashLine(line []byte) Hash {
	h := sha256.New()
	h.Write([]byte("postern audit/1\x00"))
	h.Write(line)
	return Hash(h.Sum(nil))
}

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText returns the hash in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 hexadecimal characters.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("%w: a hash has %d characters", ErrMalformed, 2*len(h))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// Head is the end of a writer's chain at some moment. Whoever remembers one can show later
// that the chain was cut or rewritten.
type Head struct {
	Writer string `json:"writer"`
	Seq    uint64 `json:"seq"`
	Hash   Hash   `json:"hash"`
}

// Row is a record as it rests in the store. Line is the truth, the rest repeats it.
type Row struct {
	Writer  string
	Seq     uint64
	At      time.Time
	Kind    Kind
	User    ids.UserID
	Device  ids.DeviceID
	Session ids.SessionID
	App     ids.AppID
	Receipt ids.ReceiptID
	Line    []byte
	Hash    Hash
}

// rowOf encodes r.
func rowOf(r Record) (Row, error) {
	line, err := encode(r)
	if err != nil {
		return Row{}, err
	}
	return r.row(line), nil
}

// row is the record beside its line.
func (r Record) row(line []byte) Row {
	return Row{
		Writer: r.Writer, Seq: r.Seq, At: r.Time(), Kind: r.Kind, User: r.User, Device: r.Device,
		Session: r.Session, App: r.App, Receipt: r.Receipt, Line: line, Hash: HashLine(line),
	}
}

// encode returns the canonical line: fields in the order of the struct, maps sorted.
func encode(r Record) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("encode audit record: %w", err)
	}
	line := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(line) > MaxLine {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(line), MaxLine)
	}
	return line, nil
}

// ParseLine reads one record and checks its limits. Unknown fields are ignored: they are
// covered by the hash and shown by readers that know them.
func ParseLine(line []byte) (Record, error) {
	if len(line) > MaxLine || bytes.IndexByte(line, '\n') >= 0 {
		return Record{}, fmt.Errorf("%w: longer than %d bytes or more than one line", ErrMalformed, MaxLine)
	}
	if bytes.HasPrefix(line, []byte(framePrefix)) {
		return Record{}, fmt.Errorf("%w: a frame of an exported file", ErrMalformed)
	}
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if r.V != version || r.Writer == "" || r.Seq == 0 || r.Kind == "" {
		return Record{}, fmt.Errorf("%w: v, writer, seq and kind are required, v is %d", ErrMalformed, version)
	}
	if len(r.Details) > maxDetails {
		return Record{}, fmt.Errorf("%w: %d details, at most %d", ErrMalformed, len(r.Details), maxDetails)
	}
	return r, r.checkFields()
}

// checkFields keeps indexed values short and printable.
func (r Record) checkFields() error {
	for _, v := range []string{r.Writer, string(r.Kind), string(r.User), string(r.Device), string(r.Session), string(r.App), string(r.Receipt)} {
		if len(v) > maxField {
			return fmt.Errorf("%w: a value of %d bytes, at most %d", ErrMalformed, len(v), maxField)
		}
		for i := range len(v) {
			if v[i] < 0x20 || v[i] > 0x7e {
				return fmt.Errorf("%w: unprintable value", ErrMalformed)
			}
		}
	}
	if r.Seq > 1<<62 || r.TimeMS <= 0 {
		return fmt.Errorf("%w: number out of range", ErrMalformed)
	}
	return nil
}
