package audit

import (
	"bytes"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// MaxLine bounds a record.
const MaxLine = chain.MaxLine

// maxField bounds a page token.
const maxField = 128

// The line format and its words are those of proto/chain, which connectors share.
type (
	// Kind says what happened.
	Kind = chain.Kind
	// Event is what a caller records. Empty fields are left out.
	Event = chain.Event
	// Record is an event in a chain.
	Record = chain.Record
	// Hash is the hash of one record; the zero value stands before the first.
	Hash = chain.Hash
	// Head is the end of a writer's chain at some moment. Whoever remembers one can show
	// later that the chain was cut or rewritten.
	Head = chain.Head
)

// Kinds that this package writes itself or treats in its own way.
const (
	Decision     = chain.Decision
	Denied       = chain.Denied
	Granted      = chain.Granted
	Revoked      = chain.Revoked
	SignedIn     = chain.SignedIn
	SignInFailed = chain.SignInFailed
	SignedOut    = chain.SignedOut
	Enrolled     = chain.Enrolled
	Changed      = chain.Changed
	Published    = chain.Published
	FlowOpened   = chain.FlowOpened
	FlowClosed   = chain.FlowClosed
	FlowRefused  = chain.FlowRefused
	Probe        = chain.Probe
	Started      = chain.Started
	Restored     = chain.Restored
	Erased       = chain.Erased
	Dropped      = chain.Dropped
	Gap          = chain.Gap
	Lost         = chain.Lost
)

// HashLine returns the hash of a record from its line, without the line feed.
func HashLine(line []byte) Hash { return chain.HashLine(line) }

// ParseLine reads one record and checks its limits. Unknown fields are ignored: they are
// covered by the hash and shown by readers that know them.
func ParseLine(line []byte) (Record, error) {
	if bytes.HasPrefix(line, []byte(framePrefix)) {
		return Record{}, fmt.Errorf("%w: a frame of an exported file", ErrMalformed)
	}
	if !utf8.Valid(line) { // PostgreSQL does not store it
		return Record{}, fmt.Errorf("%w: not UTF-8", ErrMalformed)
	}
	r, err := chain.ParseLine(line)
	if err == nil && r.TimeMS <= 0 {
		err = fmt.Errorf("%w: no time", ErrMalformed)
	}
	return r, err
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

// rowOf is the record beside its line.
func rowOf(r Record, line []byte) Row {
	return Row{
		Writer: r.Writer, Seq: r.Seq, At: r.Time(), Kind: r.Kind, User: r.User, Device: r.Device,
		Session: r.Session, App: r.App, Receipt: r.Receipt, Line: line, Hash: HashLine(line),
	}
}
