// Package chain is the line format of the audit: what brokers and connectors write, and
// what anybody can verify offline. Each writer has one hash chain of records. A record is
// one line of JSON, at most MaxLine bytes without the line feed:
//
//	{"v":1,"writer":"con_..","seq":7,"time_ms":1700000000000,"prev":"<64 hex>","kind":"flow_open",...}
//
// prev is the hash of the record before it, zeros for seq 1, and
//
//	hash = SHA-256("postern audit/1" 0x00 | the line as it stands)
//
// so whoever reads a record hashes the bytes that came and never encodes again (decisions
// rule 31). Pure package.
package chain

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

const (
	// Version is the version of a record.
	Version = 1
	// MaxLine bounds a record; a decision with its reasons has about 1 KiB.
	MaxLine = 16 << 10
	// maxField bounds the values that are indexed; an id has 30 characters.
	maxField   = 128
	maxDetails = 64
)

// ErrMalformed says that a line is no record.
var ErrMalformed = errors.New("malformed audit record")

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
	FlowRefused  Kind = "flow_refused"
	Probe        Kind = "probe"    // a configured health probe
	Started      Kind = "started"  // a writer started
	Restored     Kind = "restored" // the store was restored from a backup
	Erased       Kind = "erased"   // personal values of a user
	Dropped      Kind = "dropped"  // archived segments left the store
	Gap          Kind = "gap"      // records of a connector that never arrived
	Lost         Kind = "lost"     // best-effort records that found no room
)

// Event is what a writer records. Empty fields are left out.
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

// String is how a person passes a head on; ParseHead reads it.
func (h Head) String() string { return fmt.Sprintf("%s:%d:%s", h.Writer, h.Seq, h.Hash) }

// ParseHead reads WRITER:NUMBER:HASH.
func ParseHead(text string) (Head, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 || parts[0] == "" || len(parts[0]) > maxField {
		return Head{}, fmt.Errorf("%w: want WRITER:NUMBER:HASH", ErrMalformed)
	}
	seq, err := strconv.ParseUint(parts[1], 10, 62)
	if err != nil || seq == 0 {
		return Head{}, fmt.Errorf("%w: number of a record", ErrMalformed)
	}
	h := Head{Writer: parts[0], Seq: seq}
	return h, h.Hash.UnmarshalText([]byte(parts[2]))
}

// Next returns the record that follows h, with its line and the head behind it.
func (h Head) Next(e Event, at time.Time) (Record, []byte, Head, error) {
	r := Record{V: Version, Writer: h.Writer, Seq: h.Seq + 1, TimeMS: at.UnixMilli(), Prev: h.Hash, Event: e}
	line, err := Encode(r)
	if err != nil {
		return Record{}, nil, h, err
	}
	return r, line, Head{Writer: h.Writer, Seq: r.Seq, Hash: HashLine(line)}, nil
}

// Encode returns the canonical line: fields in the order of the struct, maps sorted.
func Encode(r Record) ([]byte, error) {
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
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if r.V != Version || r.Writer == "" || r.Seq == 0 || r.Kind == "" {
		return Record{}, fmt.Errorf("%w: v, writer, seq and kind are required, v is %d", ErrMalformed, Version)
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
	if r.Seq > 1<<62 || r.TimeMS < 0 {
		return fmt.Errorf("%w: number out of range", ErrMalformed)
	}
	return nil
}
