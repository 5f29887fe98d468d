package adminapi

import (
	"strings"
	"testing"

	"github.com/postern-zt/postern/broker/catalog"
)

func TestOnlyProposalTakesAUniqueName(t *testing.T) {
	all := []catalog.Proposal{
		{Connector: "con_a", Name: "wiki", State: catalog.Pending},
		{Connector: "con_b", Name: "wiki", State: catalog.Rejected},
		{Connector: "con_a", Name: "git", State: catalog.Pending},
		{Connector: "con_b", Name: "git", State: catalog.Pending},
	}
	if con, name, err := onlyProposal(all, "Wiki"); con != "con_a" || name != "wiki" || err != nil {
		t.Errorf("wiki: %s/%s, %v", con, name, err)
	}
	for name, want := range map[string]string{"git": "2 connectors", "mail": "nobody proposes"} {
		if con, _, err := onlyProposal(all, name); con != "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v, want %q", name, con, err, want)
		}
	}
}

func TestThereAreNamesAFew(t *testing.T) {
	for want, names := range map[string][]string{
		"there are none yet": nil, "there are: ann, bob": {"ann", "bob"},
		"there are: a, b, c, d, e and more": {"a", "b", "c", "d", "e", "f"},
	} {
		if got := thereAre(names); got != want {
			t.Errorf("thereAre(%q) = %q, want %q", names, got, want)
		}
	}
}
