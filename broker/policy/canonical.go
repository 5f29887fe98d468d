package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern-zt/postern/broker/trust"
)

// Limits of an input. Beyond them the request is denied as invalid_input.
const (
	maxInput      = 256 << 10 // bytes of the canonical form
	maxGroups     = 2048
	maxInputAttrs = 128
	maxFacts      = 64
	maxTags       = 64
	maxAMR        = 32
)

// ErrInput marks an input that is malformed or beyond the limits.
var ErrInput = errors.New("malformed decision input")

// Canonical returns the canonical form: JSON with sorted keys, sets sorted, times in UTC cut
// to milliseconds. Decide(in) and Decide of the decoded canonical form are the same.
func (in Input) Canonical() ([]byte, error) {
	n := in.normal()
	if err := n.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encode decision input: %w", err)
	}
	if b, err = sortKeys(b); err != nil {
		return nil, err
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrInput, maxInput)
	}
	return b, nil
}

// sortKeys re-encodes JSON through maps, whose keys are written in order.
func sortKeys(b []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("sort decision input: %w", err)
	}
	return json.Marshal(v)
}

// DecodeInput reads a canonical input strictly.
func DecodeInput(b []byte) (Input, error) {
	if len(b) > maxInput {
		return Input{}, fmt.Errorf("%w: larger than %d bytes", ErrInput, maxInput)
	}
	var in Input
	if err := strict(b, &in); err != nil {
		return Input{}, fmt.Errorf("%w: %w", ErrInput, err)
	}
	if err := in.Validate(); err != nil {
		return Input{}, err
	}
	return in.normal(), nil
}

// normal returns the input with sets sorted and times cut; the receiver is not written to.
func (in Input) normal() Input {
	id := &in.Identity
	id.Groups, id.AMR = sorted(id.Groups), sorted(id.AMR)
	in.App.Tags, in.App.Verbs, in.Verbs = sorted(in.App.Tags), sorted(in.App.Verbs), sorted(in.Verbs)
	in.StepUpTried = sorted(in.StepUpTried)
	in.Device.Facts = slices.Clone(in.Device.Facts)
	slices.SortStableFunc(in.Device.Facts, func(a, b trust.View) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	in.eachTime(func(t *time.Time) { *t = cut(*t) })
	in.Context.Source = in.Context.Source.Unmap()
	return in
}

// eachTime visits every time of the input; Device.Facts must be its own copy.
func (in *Input) eachTime(visit func(*time.Time)) {
	id := &in.Identity
	for _, t := range []*time.Time{&in.Time, &id.SignedInAt, &id.AuthTime, &id.VerifiedAt, &id.IdentityStale} {
		visit(t)
	}
	for i := range in.Device.Facts {
		f := &in.Device.Facts[i]
		visit(&f.ObservedAt)
		visit(&f.ExpiresAt)
		visit(&f.GraceUntil)
	}
}

func cut(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Millisecond)
}

func sorted[S ~string](l []S) []S {
	if len(l) == 0 {
		return nil
	}
	l = slices.Clone(l)
	slices.Sort(l)
	return slices.Compact(l)
}

// Validate reports the first thing that is missing or out of limits. What it refuses, Decide
// denies.
func (in *Input) Validate() error {
	for _, check := range []func() string{in.checkHead, in.checkSizes, in.checkTexts, in.checkFacts, in.checkTimes} {
		if what := check(); what != "" {
			return fmt.Errorf("%w: %s", ErrInput, what)
		}
	}
	return nil
}

func (in *Input) checkHead() string {
	switch {
	case in.Version != InputVersion:
		return fmt.Sprintf("version %d", in.Version)
	case in.Time.IsZero():
		return "no time"
	case in.App.ID == "":
		return "no app"
	case !slices.Contains(Classes(), in.App.Class):
		return "unknown class of the app"
	case in.App.MinLevel > trust.MaxLevel || in.App.MinScore < 0 || in.App.MinScore > trust.MaxScore:
		return "level or score of the app out of range"
	case in.App.Limited != "" && in.App.Limited != LimitedRate && in.App.Limited != LimitedStepUp:
		return "unknown limited mode"
	case in.Risk.Score < 0 || in.Risk.Score > 100:
		return "risk out of range"
	case validVerbs(in.App.Verbs) != nil || validVerbs(in.Verbs) != nil:
		return "unknown verb"
	}
	return ""
}

func (in *Input) checkSizes() string {
	switch {
	case len(in.Identity.Groups) > maxGroups:
		return "too many groups"
	case len(in.Identity.Attributes) > maxInputAttrs || len(in.App.Attributes) > maxInputAttrs:
		return "too many attributes"
	case len(in.Device.Facts) > maxFacts:
		return "too many facts"
	case len(in.App.Tags) > maxTags:
		return "too many tags"
	case len(in.Identity.AMR) > maxAMR || len(in.StepUpTried) > maxAMR:
		return "too many authentication methods"
	}
	return ""
}

func (in *Input) checkTexts() string {
	id, app := &in.Identity, &in.App
	if !fits(maxText, string(id.User), string(id.Session), id.ACR, string(in.Device.ID), in.Context.Network, string(app.ID), app.Name, app.Protocol, app.Owner) {
		return "a text is too long or not UTF-8"
	}
	if !fitIDs(id.Groups) || !fitIDs(app.Tags) || !fitIDs(id.AMR) {
		return "a group, tag or method is malformed"
	}
	for _, attrs := range []map[string]Value{id.Attributes, app.Attributes} {
		for name, v := range attrs {
			if !fits(64, name) || !v.fits() {
				return "an attribute is too large"
			}
		}
	}
	if in.Context.Source.Zone() != "" {
		return "source address has a zone"
	}
	return ""
}

func (in *Input) checkFacts() string {
	seen := make(map[trust.FactName]bool, len(in.Device.Facts))
	for _, f := range in.Device.Facts {
		if seen[f.Name] || f.Name == "" || !fits(64, string(f.Name), string(f.Source)) || !fits(maxText, f.Data) {
			return "a fact is malformed or there twice"
		}
		seen[f.Name] = true
	}
	return ""
}

// checkTimes keeps times within what the canonical form can write and Cedar can count.
func (in *Input) checkTimes() string {
	bad := false
	in.eachTime(func(t *time.Time) {
		bad = bad || (!t.IsZero() && (t.Year() < 1970 || t.Year() > 9000))
	})
	if bad {
		return "a time is out of range"
	}
	return ""
}
