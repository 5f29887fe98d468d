package admincli

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/admin/v1/adminv1connect"
)

const testSecret = "s3cret-of-the-issuer"

// issuerServer remembers what was added; it answers err when there is one.
type issuerServer struct {
	adminv1connect.UnimplementedIssuerServiceHandler
	got *adminv1.AddIssuerRequest
	err error
}

func (s *issuerServer) AddIssuer(_ context.Context, req *connect.Request[adminv1.AddIssuerRequest]) (*connect.Response[adminv1.IssuerResponse], error) {
	s.got = req.Msg
	return connect.NewResponse(&adminv1.IssuerResponse{
		Issuer: &adminv1.Issuer{Name: req.Msg.Name}, ReturnUrl: "https://broker.example/login/return",
	}), s.err
}

func issuerConn(t *testing.T, s *issuerServer, asJSON bool) (*Conn, *bytes.Buffer) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(adminv1connect.NewIssuerServiceHandler(s))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	var out bytes.Buffer
	return newConn(srv.Client(), srv.URL, "there", printer{out: &out, json: asJSON, now: time.UnixMilli(0)}), &out
}

// TestIssuerAdd: the secret reaches the broker from a file or stdin, and nothing else.
func TestIssuerAdd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(testSecret+"\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{file, "-"} {
		for _, asJSON := range []bool{false, true} {
			s := &issuerServer{}
			c, out := issuerConn(t, s, asJSON)
			cmd := &issuerAddCmd{Name: "Corp", URL: "https://idp.example", ClientID: "c", secretFlag: secretFlag{SecretFile: from}}
			if err := cmd.Run(t.Context(), c, &Env{In: strings.NewReader(testSecret + "\n")}); err != nil {
				t.Fatal(err)
			}
			if s.got.ClientSecret != testSecret || s.got.Url != "https://idp.example" || s.got.ClientId != "c" {
				t.Error("the broker got another request")
			}
			if !strings.Contains(out.String(), "https://broker.example/login/return") || strings.Contains(out.String(), testSecret) {
				t.Errorf("output without the return URL or with the secret:\n%s", out)
			}
		}
	}
}

// TestIssuerAddRefuses: nothing is sent without a decision about the secret.
func TestIssuerAddRefuses(t *testing.T) {
	for name, cmd := range map[string]*issuerAddCmd{
		"neither secret nor public": {},
		"both":                      {Public: true, secretFlag: secretFlag{SecretFile: "-"}},
		"empty secret":              {secretFlag: secretFlag{SecretFile: "-"}},
		"no file":                   {secretFlag: secretFlag{SecretFile: filepath.Join(t.TempDir(), "none")}},
	} {
		s := &issuerServer{}
		c, _ := issuerConn(t, s, false)
		if err := cmd.Run(t.Context(), c, &Env{In: strings.NewReader("\n")}); ExitCode(err) != ExitUsage || s.got != nil {
			t.Errorf("%s: %v, sent %v", name, err, s.got != nil)
		}
	}
	long := &issuerAddCmd{secretFlag: secretFlag{SecretFile: "-"}}
	c, _ := issuerConn(t, &issuerServer{}, false)
	err := long.Run(t.Context(), c, &Env{In: strings.NewReader(strings.Repeat("x", maxSecret+1))})
	if ExitCode(err) != ExitUsage || strings.Contains(err.Error(), "xxx") {
		t.Errorf("a secret without end: %v", err)
	}
}
