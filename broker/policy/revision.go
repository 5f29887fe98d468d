package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/proto/ids"
)

// Meta names a revision: who published it, when, as which.
type Meta struct {
	ID          ids.RevisionID `json:"id"`
	Number      int64          `json:"number"`
	PublishedAt time.Time      `json:"published_at"`
	PublishedBy string         `json:"published_by,omitempty"`
	Comment     string         `json:"comment,omitempty"`
}

// Revision is one compiled, immutable state of the policy.
type Revision struct {
	Meta
	Hash string // SHA-256 of the canonical document, in hexadecimal

	doc         Document
	canonical   []byte
	schema      string
	validator   *validate.Validator
	index       *index
	policies    []*compiled
	schedules   []*schedule
	names       []string // of the schedules
	mfaAges     []Duration
	sessionAges []Duration
	attrs       map[attrKey]AttributeDecl
	warnings    []Problem
	unknownFact types.Record // what a fact that was never reported reads
}

// Compile checks a document and builds its revision. The error is a *CompileError that names
// the rules. Compile keeps nothing of doc.
func Compile(m Meta, doc Document) (*Revision, error) {
	canonical, err := EncodeDocument(doc)
	if err != nil {
		return nil, err
	}
	own, err := DecodeDocument(canonical) // a deep copy that nobody else can write to
	if err != nil {
		return nil, err
	}
	c := &compiler{doc: own}
	if err := c.run(); err != nil {
		return nil, err
	}
	c.lintDocument()
	sum := sha256.Sum256(canonical)
	return &Revision{Meta: m, Hash: hex.EncodeToString(sum[:]), doc: c.doc, canonical: canonical, schema: c.schema,
		validator: c.validator, index: newIndex(c.policies), policies: c.policies, schedules: c.schedules,
		names: c.scheduleNames, mfaAges: c.mfaAges, sessionAges: c.sessionAges, attrs: c.attrs, warnings: c.warnings, unknownFact: factRecord(trust.StateUnknown.String(), 0, "")}, nil
}

// Document returns a copy of what the revision was compiled from.
func (r *Revision) Document() Document {
	d, err := DecodeDocument(r.canonical)
	if err != nil {
		panic("policy: a revision's own document does not decode: " + err.Error()) // it did in Compile
	}
	return d
}

// Canonical returns the encoded document that Hash covers; the caller must not write to it.
func (r *Revision) Canonical() []byte { return r.canonical }

// Schema returns the Cedar schema that the revision's policies are checked against.
func (r *Revision) Schema() string { return r.schema }

// Warnings lists what the linter noticed: rules that can never match, rules that block all.
func (r *Revision) Warnings() []Problem { return r.warnings }

// Class returns the baseline row of a class; ok is false for a class that is none.
func (r *Revision) Class(c Class) (row ClassDefaults, ok bool) {
	row, ok = r.doc.Baseline[c]
	return row, ok
}

// Trust returns the table by which facts count; before the first revision the default one.
// The caller must not write to it.
func (r *Revision) Trust() trust.Settings {
	if r == nil {
		return trust.DefaultSettings()
	}
	return r.doc.Trust
}

// Cedar returns the Cedar text of a rule or baseline row, empty when there is none such.
func (r *Revision) Cedar(id string) string {
	for _, p := range r.policies {
		if p.id == id {
			return string(p.policy.MarshalCedar())
		}
	}
	return ""
}

// EncodeDocument writes the canonical form: compact JSON in field order, map keys sorted.
func EncodeDocument(doc Document) ([]byte, error) {
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode policy document: %w", err)
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("policy document is larger than %d bytes", maxDocument)
	}
	return b, nil
}

// DecodeDocument reads a document strictly: a field it does not know fails.
func DecodeDocument(b []byte) (Document, error) {
	var doc Document
	if len(b) > maxDocument {
		return doc, fmt.Errorf("policy document is larger than %d bytes", maxDocument)
	}
	if err := strict(b, &doc); err != nil {
		return Document{}, fmt.Errorf("parse policy document: %w", err)
	}
	return doc, nil
}

// DecodeRule reads one rule strictly.
func DecodeRule(b []byte) (Rule, error) {
	var r Rule
	if len(b) > maxCedar+maxDocument/maxRules*16 {
		return r, fmt.Errorf("rule is too large")
	}
	if err := strict(b, &r); err != nil {
		return Rule{}, fmt.Errorf("parse rule: %w", err)
	}
	return r, nil
}

// strict decodes one JSON value, with nothing unknown in it and nothing after it.
func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("data after the end")
	}
	return nil
}
