package adminapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/catalog"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

func (s system) ListSuffixes(context.Context, *connect.Request[adminv1.ListSuffixesRequest]) (*connect.Response[adminv1.Suffixes], error) {
	snap := s.cfg.Catalog.Current()
	_, warnings, err := catalog.CheckSuffixes(snap.Suffixes())
	return respond(&adminv1.Suffixes{Suffixes: snap.Suffixes(), Version: snap.SuffixVersion(), Warnings: warnings}, err)
}

func (s system) SetSuffixes(ctx context.Context, req *connect.Request[adminv1.SetSuffixesRequest]) (*connect.Response[adminv1.Suffixes], error) {
	m, old := req.Msg, s.cfg.Catalog.Current()
	if len(m.Suffixes) == 0 {
		return nil, badRequest("name at least one suffix: apps need a name")
	}
	wanted, _, err := catalog.CheckSuffixes(m.Suffixes)
	if err != nil {
		return nil, err
	}
	if m.Version == 0 {
		m.Version = old.SuffixVersion()
	}
	if err := s.record(ctx, what("set suffixes", "suffixes", strings.Join(wanted, " "), "before", strings.Join(old.Suffixes(), " "))); err != nil {
		return nil, err
	}
	warnings, err := s.cfg.Catalog.SetSuffixes(ctx, wanted, m.Version)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Catalog.Current()
	return connect.NewResponse(&adminv1.Suffixes{
		Suffixes: now.Suffixes(), Version: now.SuffixVersion(), Warnings: append(warnings, lostNames(old.Suffixes(), wanted)...),
	}), nil
}

// lostNames warns of names that people may have in use.
func lostNames(before, after []string) []string {
	var out []string
	for _, s := range before {
		if !slices.Contains(after, s) {
			out = append(out, fmt.Sprintf("%s: names below it no longer lead anywhere", s))
		}
	}
	return out
}
