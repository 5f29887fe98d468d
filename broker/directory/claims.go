package directory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Limits on claims; what is beyond them is not read.
const (
	// DefaultGroupLimit is how many groups one person may have; Entra ID stops at 200 too.
	DefaultGroupLimit = 200
	maxAttributes     = 64
	maxValues         = 64
	maxValueLen       = 256
)

// ClaimMap says which claims of an issuer become which fields. A claim is named by its key or
// by a path with dots ("realm_access.roles"). Zero fields take the defaults of OpenID Connect.
type ClaimMap struct {
	Login  string `json:"login,omitempty"`  // default preferred_username
	Name   string `json:"name,omitempty"`   // default name
	Mail   string `json:"mail,omitempty"`   // default email
	Groups string `json:"groups,omitempty"` // default groups
	// Attributes maps the name an attribute gets here to the claim it comes from.
	Attributes map[string]string `json:"attributes,omitempty"`
	// GroupLimit bounds the groups of one person; zero means DefaultGroupLimit. More than
	// that is GroupsIncomplete.
	GroupLimit int `json:"group_limit,omitempty"`
}

// Profile is what an issuer's claims say about one person.
type Profile struct {
	Login, Name, Mail string
	Groups            []string
	GroupsIncomplete  bool
	Attributes        map[string][]string
}

// Validate refuses a map that could not be applied.
func (m ClaimMap) Validate() error {
	if len(m.Attributes) > maxAttributes {
		return fmt.Errorf("%w: at most %d attributes", ErrInvalid, maxAttributes)
	}
	if m.GroupLimit < 0 {
		return fmt.Errorf("%w: group_limit is negative", ErrInvalid)
	}
	for name, claim := range m.Attributes {
		if name == "" || claim == "" {
			return fmt.Errorf("%w: an attribute needs a name and a claim", ErrInvalid)
		}
	}
	return nil
}

// Read maps the claims of a verified token. It never fails: a claim of another type than
// expected is left out, except for groups, where it means GroupsIncomplete.
func (m ClaimMap) Read(claims map[string]any) Profile {
	p := Profile{
		Login: text(claims, or(m.Login, "preferred_username"), maxLogin),
		Name:  text(claims, or(m.Name, "name"), maxName),
		Mail:  text(claims, or(m.Mail, "email"), maxMail),
	}
	p.Groups, p.GroupsIncomplete = m.readGroups(claims)
	for name, claim := range m.Attributes {
		if v, ok := lookup(claims, claim); ok {
			p.setAttribute(name, v)
		}
	}
	return p
}

// readGroups returns the group names and whether the list cannot be trusted to be whole: the
// issuer moved it to another place (distributed claims, "hasgroups"), it is over the limit,
// or it is no list of texts.
func (m ClaimMap) readGroups(claims map[string]any) (names []string, incomplete bool) {
	claim := or(m.Groups, "groups")
	if moved(claims, claim) {
		return nil, true
	}
	v, ok := lookup(claims, claim)
	if !ok || v == nil {
		return nil, false
	}
	limit := m.GroupLimit
	if limit == 0 {
		limit = DefaultGroupLimit
	}
	names, whole := texts(v, limit, maxGroupName)
	if !whole {
		return nil, true
	}
	return names, false
}

// moved reports the ways in which issuers say "too many groups to fit".
func moved(claims map[string]any, claim string) bool {
	if names, ok := claims["_claim_names"].(map[string]any); ok {
		if _, ok := names[claim]; ok {
			return true
		}
	}
	return claims["hasgroups"] == true || claims["hasgroups"] == "true"
}

func (p *Profile) setAttribute(name string, v any) {
	values, whole := texts(v, maxValues, maxValueLen)
	if !whole || len(values) == 0 {
		return
	}
	if p.Attributes == nil {
		p.Attributes = map[string][]string{}
	}
	p.Attributes[name] = values
}

func (p Profile) applyTo(u *User) {
	u.Login, u.Name, u.Mail = p.Login, p.Name, p.Mail
	u.Attributes = maps.Clone(p.Attributes)
	u.GroupsIncomplete = p.GroupsIncomplete
}

// lookup follows a claim name: the key itself first, since namespaced claims hold dots, then
// the path.
func lookup(claims map[string]any, path string) (any, bool) {
	if v, ok := claims[path]; ok {
		return v, true
	}
	head, rest, ok := strings.Cut(path, ".")
	if !ok {
		return nil, false
	}
	inner, ok := claims[head].(map[string]any)
	if !ok {
		return nil, false
	}
	return lookup(inner, rest)
}

// text returns a claim of type text that can be shown and stored, else the empty text.
func text(claims map[string]any, path string, most int) string {
	v, _ := lookup(claims, path)
	s, _ := v.(string)
	if len(s) > most || !printable(s) {
		return ""
	}
	return s
}

// texts reads one value or a list of them as sorted, distinct texts; whole is false when
// something had to be left out.
func texts(v any, limit, most int) (out []string, whole bool) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) > limit {
		return nil, false
	}
	for _, item := range list {
		s, ok := scalar(item)
		if !ok || s == "" || len(s) > most || !printable(s) {
			return nil, false
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return slices.Compact(out), true
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool, float64:
		return fmt.Sprint(v), true
	default:
		return "", false
	}
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
