package admincli

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
)

// commandLine is the tree as a main embeds it.
type commandLine struct {
	Admin Admin `cmd:""`
}

func parse(t *testing.T, args ...string) (*commandLine, *kong.Context, error) {
	t.Helper()
	var c commandLine
	p, err := kong.New(&c, kong.Name("postern"), Examples(), kong.Exit(func(int) { t.Error("the parser wants to exit") }))
	if err != nil {
		t.Fatal(err)
	}
	kctx, err := p.Parse(append([]string{"admin"}, args...))
	return &c, kctx, err
}

func TestEveryCommandHasHelpAndExample(t *testing.T) {
	_, kctx, err := parse(t, "user", "list")
	if err != nil {
		t.Fatal(err)
	}
	leaves := 0
	err = kong.Visit(kctx.Model, func(v kong.Visitable, next kong.Next) error {
		n, ok := v.(*kong.Node)
		if ok && n.Type == kong.CommandNode && len(n.Children) == 0 {
			leaves++
			if n.Help == "" || !strings.Contains(n.Detail, "Example:\n    postern admin ") {
				t.Errorf("%s: help %q, detail %q; want both, with an example", n.Path(), n.Help, n.Detail)
			}
		}
		return next(nil)
	})
	if err != nil || leaves < 50 {
		t.Errorf("visited %d commands, %v; want more than 50", leaves, err)
	}
}

// TestExamplesParse makes sure that what the help shows is accepted.
func TestExamplesParse(t *testing.T) {
	_, kctx, err := parse(t, "user", "list")
	if err != nil {
		t.Fatal(err)
	}
	_ = kong.Visit(kctx.Model, func(v kong.Visitable, next kong.Next) error {
		if n, ok := v.(*kong.Node); ok && n.Tag != nil && n.Tag.Has("example") {
			line := strings.TrimPrefix(n.Tag.Get("example"), "postern admin ")
			if _, got, err := parse(t, words(line)...); err != nil || got.Selected().Path() != n.Path() {
				t.Errorf("example of %s: %v", n.Path(), err)
			}
		}
		return next(nil)
	})
}

// words splits as a shell would, with single quotes.
func words(line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

func TestRuleScope(t *testing.T) {
	c := &Conn{print: printer{now: time.UnixMilli(1_000_000)}}
	tests := []struct {
		name string
		in   scope
		want *adminv1.PutRuleRequest // nil: refused
	}{
		{"a person, an app", scope{Who: "ann", App: "wiki"}, &adminv1.PutRuleRequest{Name: "allow ann wiki", Users: []string{"ann"}, Apps: []string{"wiki"}}},
		{"a group, a tag", scope{Who: "@staff", App: "#docs"}, &adminv1.PutRuleRequest{Name: "allow @staff #docs", Groups: []string{"staff"}, Tags: []string{"docs"}}},
		{"everyone, all", scope{Who: "everyone", App: "all"}, &adminv1.PutRuleRequest{Name: "allow everyone all", AnyUser: true, AnyApp: true}},
		{"with an end", scope{Who: "ann", App: "wiki", Name: "n", Expires: moment{offset: length(time.Hour)}},
			&adminv1.PutRuleRequest{Name: "n", Users: []string{"ann"}, Apps: []string{"wiki"}, ExpiresMs: 4_600_000}},
		{"no group", scope{Who: "@", App: "wiki"}, nil},
		{"nobody", scope{Who: "", App: "wiki"}, nil},
		{"no tag", scope{Who: "ann", App: "#"}, nil},
		{"no app", scope{Who: "ann", App: ""}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.in.request(c, "allow", false)
			if tt.want == nil {
				if ExitCode(err) != ExitUsage {
					t.Errorf("request = %v, %v; want a usage error", got, err)
				}
				return
			}
			tt.want.Effect = "allow"
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); err != nil || diff != "" {
				t.Errorf("request: %v\n%s", err, diff)
			}
		})
	}
}

func TestUpdatePlacements(t *testing.T) {
	at := func(pairs ...string) (out []*adminv1.Placement) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, &adminv1.Placement{Site: pairs[i], Targets: []string{pairs[i+1]}})
		}
		return out
	}
	tests := []struct {
		name string
		cmd  appUpdateCmd
		old  []*adminv1.Placement
		want []*adminv1.Placement // nil: refused
	}{
		{"nothing named", appUpdateCmd{}, at("a", "1:1"), at("a", "1:1")},
		{"the only site", appUpdateCmd{Target: []string{"2:2"}}, at("a", "1:1"), at("a", "2:2")},
		{"one of two", appUpdateCmd{Target: []string{"2:2"}, appFields: appFields{Site: "b"}}, at("a", "1:1", "b", "1:1"), at("a", "1:1", "b", "2:2")},
		{"a new site", appUpdateCmd{Target: []string{"2:2"}, appFields: appFields{Site: "b"}}, at("a", "1:1"), at("a", "1:1", "b", "2:2")},
		{"which of two", appUpdateCmd{Target: []string{"2:2"}}, at("a", "1:1", "b", "1:1"), nil},
		{"a site without target", appUpdateCmd{appFields: appFields{Site: "a"}}, at("a", "1:1"), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.cmd.placements(&adminv1.App{Placements: tt.old})
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" || (err != nil) != (tt.want == nil) {
				t.Errorf("placements: %v\n%s", err, diff)
			}
		})
	}
}

func TestMoment(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		in   string
		want time.Time // counted back; zero: refused
	}{
		{"2h", now.Add(-2 * time.Hour)},
		{"30d", now.Add(-30 * day)},
		{"2026-03-01", time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)},
		{"2026-03-01T15:04:05Z", time.Date(2026, 3, 1, 15, 4, 5, 0, time.UTC)},
		{"3x", time.Time{}}, {"-2h", time.Time{}}, {"-1d", time.Time{}}, {"99999999999d", time.Time{}}, {"", time.Time{}},
	}
	for _, tt := range tests {
		var m moment
		err := m.UnmarshalText([]byte(tt.in))
		if tt.want.IsZero() {
			if err == nil {
				t.Errorf("%q was accepted", tt.in)
			}
		} else if got := m.before(now); err != nil || got != tt.want.UnixMilli() {
			t.Errorf("%q = %d, %v; want %d", tt.in, got, err, tt.want.UnixMilli())
		}
	}
}

func FuzzMoment(f *testing.F) {
	for _, s := range []string{"2h", "30d", "2026-03-01", "2026-03-01T15:04:05Z", "d", "-1d", "1e9d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var m moment
		if err := m.UnmarshalText([]byte(s)); err == nil && m.at.IsZero() && m.offset < 0 {
			t.Errorf("%q gave a negative length", s)
		}
	})
}

func TestTableAligns(t *testing.T) {
	tab := columns("A", "LONGER", "C")
	tab.add("größer", "x", "last")
	tab.add("y", "", "")
	var b bytes.Buffer
	tab.write(&b, "none")
	want := "A       LONGER  C\ngrößer  x       last\ny       -       -\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

// TestCleanKeepsTheTerminal: names come from devices and connectors.
func TestCleanKeepsTheTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain ä":              "plain ä",
		"\x1b[2Jgone":          "?[2Jgone",
		"two\nlines":           "two lines",
		"\u202eevil\u2066":     "?evil?",
		"bad \xff byte \u009b": "bad ? byte ?",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestEffect(t *testing.T) {
	tests := []struct {
		in   *adminv1.EffectResponse
		want string
	}{
		{nil, ""},
		{&adminv1.EffectResponse{}, ""},
		{&adminv1.EffectResponse{Sessions: 2, Grants: 3, Connectors: 1}, "Ended 2 sessions, 3 grants on 1 connector."},
		{&adminv1.EffectResponse{Grants: 1, Connectors: 2, Text: "Look."}, "Ended 1 grant on 2 connectors. Look."},
	}
	for _, tt := range tests {
		if got := effect(tt.in); got != tt.want {
			t.Errorf("effect(%v) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// systemServer answers Status as it is told.
type systemServer struct {
	adminv1connect.UnimplementedSystemServiceHandler
	adminv1connect.UnimplementedUserServiceHandler
	err   error
	pages int
}

func (s *systemServer) Status(context.Context, *connect.Request[adminv1.StatusRequest]) (*connect.Response[adminv1.StatusResponse], error) {
	return connect.NewResponse(&adminv1.StatusResponse{Ready: true, Version: "v1"}), s.err
}

// ListUsers gives one user on each of three pages.
func (s *systemServer) ListUsers(_ context.Context, req *connect.Request[adminv1.ListUsersRequest]) (*connect.Response[adminv1.ListUsersResponse], error) {
	s.pages++
	out := &adminv1.ListUsersResponse{Users: []*adminv1.User{{Subject: "user" + req.Msg.Page.Token}}}
	if s.pages < 3 {
		out.Next = strings.Repeat("x", s.pages)
	}
	return connect.NewResponse(out), nil
}

func connTo(t *testing.T, s *systemServer, asJSON bool) (*Conn, *bytes.Buffer) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(adminv1connect.NewSystemServiceHandler(s))
	mux.Handle(adminv1connect.NewUserServiceHandler(s))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	var out bytes.Buffer
	return newConn(srv.Client(), srv.URL, "there", printer{out: &out, json: asJSON, now: time.UnixMilli(0)}), &out
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[connect.Code]int{
		connect.CodeInvalidArgument: ExitUsage, connect.CodePermissionDenied: ExitRefused, connect.CodeUnauthenticated: ExitRefused,
		connect.CodeNotFound: ExitNotFound, connect.CodeUnavailable: ExitUnreachable, connect.CodeInternal: ExitError,
		connect.CodeAborted: ExitError, connect.CodeUnimplemented: ExitError,
	} {
		c, _ := connTo(t, &systemServer{err: connect.NewError(code, errors.New("because \x1b[31m"))}, false)
		err := new(systemStatusCmd).Run(t.Context(), c)
		if ExitCode(err) != want || !strings.Contains(err.Error(), "because ?[31m") {
			t.Errorf("%v: exit code %d (%v), want %d with the reason", code, ExitCode(err), err, want)
		}
	}
	if ExitCode(nil) != 0 || ExitCode(errors.New("x")) != ExitError {
		t.Error("nil must be 0 and any error 1")
	}
	if _, _, err := parse(t, "nonsense"); ExitCode(err) != ExitUsage {
		t.Errorf("an unknown command: exit code %d, want %d", ExitCode(err), ExitUsage)
	}
}

func TestListReadsAllPages(t *testing.T) {
	c, out := connTo(t, &systemServer{}, false)
	if err := new(userListCmd).Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"user\x20", "userx\x20", "userxx\x20"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func TestJSONIsTheMessage(t *testing.T) {
	c, out := connTo(t, &systemServer{}, true)
	if err := new(systemStatusCmd).Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	want := `{
  "version": "v1",
  "brokerId": "",
  "url": "",
  "ready": true,
  "notReady": [],
  "checks": [],
  "suffixes": []
}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// TestSocketOrder: what was said first, the environment second.
func TestSocketOrder(t *testing.T) {
	e := &Env{Environ: []string{"POSTERN_ADMIN_SOCKET=/old", "POSTERN_ADMIN_SOCKET=/env"}}
	if got := (&Admin{Socket: "/flag"}).socket(e); got != "/flag" {
		t.Errorf("with a flag: %q", got)
	}
	if got := (&Admin{}).socket(e); got != "/env" {
		t.Errorf("without a flag: %q", got)
	}
}

// TestLoginNeedsADevice: a URL alone gives nothing, and nothing is stored.
func TestLoginNeedsADevice(t *testing.T) {
	home := t.TempDir()
	e := &Env{Environ: []string{"HOME=" + home, "POSTERN_STATE=" + home + "/state"}, Out: new(bytes.Buffer), Now: time.Now}
	pin := strings.Repeat("ab", 32)
	for url, want := range map[string]int{
		"https://127.0.0.1:1/#pin=" + pin: ExitRefused,
		"https://127.0.0.1:1/":            ExitUsage,
		"http://127.0.0.1:1/#pin=" + pin:  ExitUsage,
	} {
		if err := (&loginCmd{URL: url}).Run(t.Context(), &Admin{}, e); ExitCode(err) != want {
			t.Errorf("login %s: %v (exit code %d), want exit code %d", url, err, ExitCode(err), want)
		}
	}
	if l, err := loadLogin(e); err != nil || l.URL != "" {
		t.Errorf("stored %+v, %v; want nothing", l, err)
	}
}
