package policy

import (
	"fmt"
	"iter"
	"net/netip"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/postern-zt/postern/broker/trust"
)

// entities builds the user and the app. Groups, tags and classes are only parents.
func (s *state) entities() (pair, error) {
	user, app := s.userEntity(), s.appEntity()
	for _, e := range []types.Entity{user, app} {
		if err := s.rev.validator.Entity(e); err != nil {
			return pair{}, fmt.Errorf("check entity against the schema: %w", err)
		}
	}
	return pair{user, app}, nil
}

// pair is the whole entity graph of a request.
type pair struct{ user, app types.Entity }

// Get returns the user or the app.
func (p pair) Get(id types.EntityUID) (types.Entity, bool) {
	switch id {
	case p.user.UID:
		return p.user, true
	case p.app.UID:
		return p.app, true
	default:
		return types.Entity{}, false
	}
}

func (s *state) userEntity() types.Entity {
	id := &s.in.Identity
	groups := make([]types.EntityUID, len(id.Groups))
	for i, g := range id.Groups {
		groups[i] = uid(typeGroup, g)
	}
	return types.Entity{
		UID:     uid(typeUser, id.User),
		Parents: types.NewEntityUIDSet(groups...),
		Attributes: types.NewRecord(types.RecordMap{
			"groups":            uidSet(groups),
			"groups_incomplete": types.Boolean(id.GroupsIncomplete),
			"attrs":             s.attributes(OfUser, id.Attributes),
		}),
	}
}

func (s *state) appEntity() types.Entity {
	app := &s.in.App
	class := uid(typeClass, app.Class)
	tags := make([]types.EntityUID, len(app.Tags))
	for i, t := range app.Tags {
		tags[i] = uid(typeTag, t)
	}
	return types.Entity{
		UID:     uid(typeApp, app.ID),
		Parents: types.NewEntityUIDSet(append([]types.EntityUID{class}, tags...)...),
		Attributes: types.NewRecord(types.RecordMap{
			"class": class, "tags": uidSet(tags), "name": types.String(app.Name), "protocol": types.String(app.Protocol),
			"min_level": types.Long(app.MinLevel), "min_score": types.Long(app.MinScore),
			"attrs": s.attributes(OfApp, app.Attributes),
		}),
	}
}

func uidSet(l []types.EntityUID) types.Set {
	out := make([]types.Value, len(l))
	for i, e := range l {
		out[i] = e
	}
	return types.NewSet(out...)
}

// attributes keeps what is declared and of the declared type; the rest is missing.
func (s *state) attributes(of Subject, have map[string]Value) types.Record {
	m := make(types.RecordMap, len(have))
	for name, v := range have {
		decl, ok := s.rev.attrs[attrKey{of, name}]
		if !ok {
			continue
		}
		if c, err := cedarValue(decl, v); err == nil {
			m[types.String(name)] = c
		}
	}
	return types.NewRecord(m)
}

// context builds the total record that the schema asks for.
func (s *state) context() types.Record {
	in := s.in
	m := types.RecordMap{
		"device": types.NewRecord(types.RecordMap{
			"id": types.String(in.Device.ID), "registered": types.Boolean(in.Device.Registered),
			"level": types.Long(s.trust.Level), "score": types.Long(s.trust.Score),
		}),
		"auth":           types.NewRecord(types.RecordMap{"acr": types.String(in.Identity.ACR), "amr": stringSet(in.Identity.AMR)}),
		"identity_fresh": types.Boolean(s.fresh),
		"network":        types.String(in.Context.Network),
		"risk":           types.Long(in.Risk.Score),
		"facts":          s.facts(),
		"mfa_within":     ageRecord(s.rev.mfaAges, s.mfaWithin),
		"session_within": ageRecord(s.rev.sessionAges, s.sessionWithin),
		"schedules":      s.openSchedules(),
	}
	if src := in.Context.Source.Unmap(); src.IsValid() {
		m["source"] = types.IPAddr(netip.PrefixFrom(src, src.BitLen()))
	}
	return types.NewRecord(m)
}

// facts gives each known fact a record. Whatever does not count as pass keeps its word;
// grace counts as pass, the receipt tells the difference.
func (s *state) facts() types.Record {
	m := make(types.RecordMap, len(trust.FactNames()))
	for _, n := range trust.FactNames() {
		m[types.String(n)] = s.rev.unknownFact
	}
	for _, v := range s.in.Device.Facts {
		if _, known := m[types.String(v.Name)]; !known {
			continue
		}
		word := v.At(s.in.Time).State.String()
		if s.passes(v.Name) {
			word = trust.StatePass.String()
		} else if word == trust.StatePass.String() || word == trust.StatePassInGrace.String() {
			word = trust.StateUnknown.String() // an unregistered device, or a fact without a check
		}
		m[types.String(v.Name)] = factRecord(word, s.in.Time.Sub(v.ObservedAt), v.Source)
	}
	return types.NewRecord(m)
}

func factRecord(state string, age time.Duration, source trust.Source) types.Record {
	return types.NewRecord(types.RecordMap{
		"state": types.String(state), "age_s": types.Long(int64(age / time.Second)), "source": types.String(source),
	})
}

func ageRecord(ages []Duration, within func(Duration) bool) types.Record {
	m := make(types.RecordMap, len(ages))
	for _, a := range ages {
		m[types.String(a.String())] = types.Boolean(within(a))
	}
	return types.NewRecord(m)
}

// openSchedules is total; a schedule that no candidate names reads closed.
func (s *state) openSchedules() types.Record {
	m := make(types.RecordMap, len(s.rev.names))
	for i, n := range s.rev.names {
		m[types.String(n)] = types.Boolean(s.open&(1<<i) != 0)
	}
	return types.NewRecord(m)
}

// forVerb iterates over the candidates that speak about one verb.
type forVerb struct {
	cands []*compiled
	bit   uint8
}

// All yields the candidates in any order: Cedar does not look at it, and answers are sorted.
func (f forVerb) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, c := range f.cands {
			if c.verbs&f.bit != 0 && !yield(cedar.PolicyID(c.id), c.policy) {
				return
			}
		}
	}
}
