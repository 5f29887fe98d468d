package directory_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/directory"
)

func claims(t *testing.T, text string) map[string]any {
	t.Helper()
	var c map[string]any
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaimMapRead(t *testing.T) {
	for name, c := range map[string]struct {
		mapping directory.ClaimMap
		claims  string
		want    directory.Profile
	}{
		"defaults": {
			directory.ClaimMap{}, `{"preferred_username":"ann","name":"Ann","email":"ann@example.com","groups":["b","a","b"]}`,
			directory.Profile{Login: "ann", Name: "Ann", Mail: "ann@example.com", Groups: []string{"a", "b"}},
		},
		"paths": {
			directory.ClaimMap{Groups: "realm_access.roles", Name: "https://x.example/name", Attributes: map[string]string{"dept": "org.unit", "level": "lvl"}},
			`{"realm_access":{"roles":["r"]},"https://x.example/name":"N","org":{"unit":"R&D"},"lvl":3}`,
			directory.Profile{Name: "N", Groups: []string{"r"}, Attributes: map[string][]string{"dept": {"R&D"}, "level": {"3"}}},
		},
		"no groups":            {directory.ClaimMap{}, `{}`, directory.Profile{}},
		"empty groups":         {directory.ClaimMap{}, `{"groups":[]}`, directory.Profile{}},
		"one group as text":    {directory.ClaimMap{}, `{"groups":"a"}`, directory.Profile{Groups: []string{"a"}}},
		"distributed":          {directory.ClaimMap{}, `{"_claim_names":{"groups":"src1"}}`, directory.Profile{GroupsIncomplete: true}},
		"distributed, partial": {directory.ClaimMap{}, `{"groups":["a"],"_claim_names":{"groups":"src1"}}`, directory.Profile{GroupsIncomplete: true}},
		"other distributed":    {directory.ClaimMap{}, `{"groups":["a"],"_claim_names":{"photo":"src1"}}`, directory.Profile{Groups: []string{"a"}}},
		"hasgroups":            {directory.ClaimMap{}, `{"hasgroups":true}`, directory.Profile{GroupsIncomplete: true}},
		"over the limit":       {directory.ClaimMap{GroupLimit: 2}, `{"groups":["a","b","c"]}`, directory.Profile{GroupsIncomplete: true}},
		"groups of no text":    {directory.ClaimMap{}, `{"groups":[{"id":1}]}`, directory.Profile{GroupsIncomplete: true}},
		"group too long":       {directory.ClaimMap{}, `{"groups":["` + strings.Repeat("a", 300) + `"]}`, directory.Profile{GroupsIncomplete: true}},
		"name of no text":      {directory.ClaimMap{}, `{"name":{"a":1},"email":["x"]}`, directory.Profile{}},
		"name not printable":   {directory.ClaimMap{}, `{"name":"a\u0000b\u202e"}`, directory.Profile{}},
	} {
		got := c.mapping.Read(claims(t, c.claims))
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDefaultGroupLimit(t *testing.T) {
	many := func(n int) map[string]any {
		var list []any
		for i := range n {
			list = append(list, fmt.Sprint("g", i))
		}
		return map[string]any{"groups": list}
	}
	if p := (directory.ClaimMap{}).Read(many(directory.DefaultGroupLimit)); p.GroupsIncomplete || len(p.Groups) != directory.DefaultGroupLimit {
		t.Errorf("at the limit: %+v", p.GroupsIncomplete)
	}
	if p := (directory.ClaimMap{}).Read(many(directory.DefaultGroupLimit + 1)); !p.GroupsIncomplete || p.Groups != nil {
		t.Error("over the limit: the list reads as whole")
	}
}

func FuzzClaimMapRead(f *testing.F) {
	f.Add(`{"groups":["a"],"_claim_names":{"groups":"s"},"name":"n"}`, "groups")
	f.Add(`{"a":{"b":{"c":[1,true,"x"]}}}`, "a.b.c")
	f.Add(`{"groups":null}`, ".")
	f.Fuzz(func(t *testing.T, text, path string) {
		var c map[string]any
		if json.Unmarshal([]byte(text), &c) != nil {
			return
		}
		m := directory.ClaimMap{Groups: path, Name: path, Attributes: map[string]string{"x": path}}
		p := m.Read(c)
		if p.GroupsIncomplete && p.Groups != nil {
			t.Error("an incomplete list came with groups")
		}
		if len(p.Groups) > directory.DefaultGroupLimit || len(p.Name) > 200 {
			t.Errorf("limits broken: %d groups, name of %d bytes", len(p.Groups), len(p.Name))
		}
	})
}
