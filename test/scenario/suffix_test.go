package scenario

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// TestSuffixesAreReplaced: an administrator changes what app names end in, hears what will
// hurt, and devices learn of it without asking.
func TestSuffixesAreReplaced(t *testing.T) {
	wiki := web(t, "wiki")
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.allow("ann", "wiki")
	d := w.device("ann", "ann-laptop")
	set := func(version uint64, list ...string) (*connect.Response[adminv1.Suffixes], error) {
		return w.admin.system.SetSuffixes(w.ctx(), connect.NewRequest(&adminv1.SetSuffixesRequest{Suffixes: list, Version: version}))
	}
	resp, err := set(0, "Apps.Example.", "printers.local")
	got := must(t, resp, err)
	if !slices.Equal(got.Suffixes, []string{"apps.example", "printers.local"}) {
		t.Errorf("suffixes: %v", got)
	}
	if text := strings.Join(got.Warnings, "\n"); !strings.Contains(text, "multicast DNS") || !strings.Contains(text, suffix+": names below it") {
		t.Errorf("warnings: %q", text)
	}
	d.news.await(t, "the new suffixes", func(n *news) bool { return slices.Equal(n.catalog.Suffixes, got.Suffixes) })
	for _, bad := range [][]string{{}, {"127.0.0.1"}, {"localhost"}, {"two words"}} {
		_, err := set(0, bad...)
		says(t, strings.Join(bad, " "), err, "invalid_argument")
	}
	_, err = set(got.Version-1, "other.example")
	says(t, "an old version", err, "aborted")
	list, err := w.admin.system.ListSuffixes(w.ctx(), connect.NewRequest(&adminv1.ListSuffixesRequest{}))
	if now := must(t, list, err); !slices.Equal(now.Suffixes, got.Suffixes) || now.Version != got.Version || len(now.Warnings) != 1 {
		t.Errorf("after refusals: %v", now)
	}
}
