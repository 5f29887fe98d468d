package admincli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

// maxSecret bounds a client secret; those of known issuers have less than 100 bytes.
const maxSecret = 4 << 10

type issuerCmd struct {
	List   issuerListCmd   `cmd:"" help:"List issuers, and the return URL to register at a new one." example:"postern admin issuer list"`
	Add    issuerAddCmd    `cmd:"" help:"Test an OpenID provider and let its people sign in." example:"postern admin issuer add 'Example Corp' https://login.example.com --client-id postern --secret-file secret.txt"`
	Update issuerUpdateCmd `cmd:"" help:"Change what is named; the rest stays." example:"postern admin issuer update 'Example Corp' --secret-file new-secret.txt"`
	Test   issuerTestCmd   `cmd:"" help:"Ask an issuer whether it can be used." example:"postern admin issuer test 'Example Corp'"`
	Remove issuerRemoveCmd `cmd:"" help:"Remove an issuer; its people cannot sign in any more." example:"postern admin issuer remove 'Example Corp'"`
}

type issuerListCmd struct{}

// Run lists issuers.
func (*issuerListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.issuer.ListIssuers, &adminv1.ListIssuersRequest{})
	if err != nil {
		return err
	}
	t := columns("ISSUER", "URL", "CLIENT ID", "GROUPS FROM", "SCOPES", "ID")
	for _, i := range all.Issuers {
		t.add(i.Name, i.Url, i.ClientId, either(i.Claims.GetGroups(), "groups"), strings.Join(i.Scopes, " "), i.Id)
	}
	return c.print.show(all, func(w io.Writer) {
		t.write(w, "People sign in with passwords only. Add an issuer: postern admin issuer add NAME URL --client-id ID --secret-file FILE")
		writeReturn(w, all.ReturnUrl)
	})
}

func writeReturn(w io.Writer, at string) {
	fmt.Fprintf(w, "Return URL (redirect URI) to register at the issuer:\n  %s\n", clean(at))
}

// claimFlags say which claims are read.
type claimFlags struct {
	GroupsClaim string            `help:"Claim with the groups, a path with dots for one inside another (default: groups)." placeholder:"CLAIM"`
	LoginClaim  string            `help:"Claim with the login name (default: preferred_username)." placeholder:"CLAIM"`
	NameClaim   string            `help:"Claim with the person's name (default: name)." placeholder:"CLAIM"`
	MailClaim   string            `help:"Claim with the mail address (default: email)." placeholder:"CLAIM"`
	Attribute   map[string]string `help:"Attribute of the person and its claim, may be repeated." placeholder:"NAME=CLAIM"`
	Scope       []string          `help:"Scope to ask for beyond openid, profile, email and offline_access; may be repeated." placeholder:"SCOPE"`
}

func (f claimFlags) claims() *adminv1.ClaimMap {
	return &adminv1.ClaimMap{Login: f.LoginClaim, Name: f.NameClaim, Mail: f.MailClaim, Groups: f.GroupsClaim, Attributes: f.Attribute}
}

// secretFlag names where a client secret comes from: arguments are seen by everybody.
type secretFlag struct {
	SecretFile string `help:"File with the client secret in its first line, - for stdin." placeholder:"FILE"`
}

// read returns the secret, empty when no file was named.
func (s secretFlag) read(e *Env) (string, error) {
	if s.SecretFile == "" {
		return "", nil
	}
	in := e.In
	if s.SecretFile != "-" {
		f, err := os.Open(s.SecretFile)
		if err != nil {
			return "", &Error{Code: ExitUsage, err: err}
		}
		defer f.Close()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, maxSecret+1)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the client secret: %w", err)
	}
	line = strings.TrimSpace(line)
	switch {
	case line == "":
		return "", usage("there is no client secret in the first line of %s", s.SecretFile)
	case len(line) > maxSecret:
		return "", usage("what %s holds is too long for a client secret", s.SecretFile)
	}
	return line, nil
}

type issuerAddCmd struct {
	Name     string `arg:"" help:"Shown on the sign-in page as \"Sign in with NAME\"."`
	URL      string `arg:"" name:"url" help:"The issuer, exactly as its tokens say."`
	ClientID string `name:"client-id" required:"" help:"What the issuer calls this broker." placeholder:"ID"`
	secretFlag
	Public bool `help:"The issuer gave no secret: a public client, with PKCE alone."`
	claimFlags
}

// Run adds an issuer.
func (a *issuerAddCmd) Run(ctx context.Context, c *Conn, e *Env) error {
	if a.Public == (a.SecretFile != "") {
		return usage("give the client secret with --secret-file FILE (- for stdin), or say --public for a client without one")
	}
	secret, err := a.read(e)
	if err != nil {
		return err
	}
	made, err := ask(ctx, c, c.issuer.AddIssuer, &adminv1.AddIssuerRequest{
		Name: a.Name, Url: a.URL, ClientId: a.ClientID, ClientSecret: secret, Scopes: a.Scope, Claims: a.claims(),
	})
	if err != nil {
		return err
	}
	return c.issuerDone(made, "Added "+a.Name+": its discovery and keys are good. Client id and secret are tried at the first sign-in.")
}

func (c *Conn) issuerDone(made *adminv1.IssuerResponse, done string) error {
	return c.print.show(made, func(w io.Writer) {
		fmt.Fprintln(w, clean(done))
		writeReturn(w, made.ReturnUrl)
	})
}

type issuerRef struct {
	Issuer string `arg:"" help:"Name or id."`
}

type issuerUpdateCmd struct {
	issuerRef
	Name     string `help:"New name." placeholder:"NAME"`
	ClientID string `name:"client-id" help:"What the issuer calls this broker." placeholder:"ID"`
	secretFlag
	claimFlags
}

// Run changes an issuer.
func (u *issuerUpdateCmd) Run(ctx context.Context, c *Conn, e *Env) error {
	secret, err := u.read(e)
	if err != nil {
		return err
	}
	made, err := ask(ctx, c, c.issuer.UpdateIssuer, &adminv1.UpdateIssuerRequest{
		Issuer: u.Issuer, Name: u.Name, ClientId: u.ClientID, ClientSecret: secret, Scopes: u.Scope, Claims: u.claims(),
	})
	if err != nil {
		return err
	}
	return c.issuerDone(made, "Changed "+made.Issuer.GetName()+": its discovery and keys are good.")
}

type issuerTestCmd struct{ issuerRef }

// Run tests an issuer.
func (t *issuerTestCmd) Run(ctx context.Context, c *Conn) error {
	good, err := ask(ctx, c, c.issuer.TestIssuer, &adminv1.IssuerRef{Issuer: t.Issuer})
	if err != nil {
		return err
	}
	return c.issuerDone(good, good.Issuer.GetName()+" answers; its discovery and keys are good.")
}

type issuerRemoveCmd struct {
	issuerRef
	why
}

// Run removes an issuer.
func (r *issuerRemoveCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.issuer.RemoveIssuer, &adminv1.IssuerRef{Issuer: r.Issuer, Reason: r.Reason}, "Removed "+r.Issuer+".")
}

type suffixCmd struct {
	List suffixListCmd `cmd:"" help:"List the suffixes of app names." example:"postern admin suffix list"`
	Set  suffixSetCmd  `cmd:"" help:"Replace the suffixes; the first is the one that app names get." example:"postern admin suffix set corp.internal old.example"`
}

type suffixListCmd struct{}

// Run lists suffixes.
func (*suffixListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.system.ListSuffixes, &adminv1.ListSuffixesRequest{})
	if err != nil {
		return err
	}
	return c.print.show(all, func(w io.Writer) {
		t := columns("SUFFIX")
		for _, s := range all.Suffixes {
			t.add(s)
		}
		t.write(w, "There are no suffixes. Set one: postern admin suffix set corp.internal")
		writeWarnings(w, all.Warnings)
	})
}

func writeWarnings(w io.Writer, list []string) {
	for _, text := range list {
		fmt.Fprintln(w, "Warning:", clean(text))
	}
}

type suffixSetCmd struct {
	Suffix []string `arg:"" help:"Suffixes, the first for app names."`
}

// Run replaces the suffixes.
func (s *suffixSetCmd) Run(ctx context.Context, c *Conn) error {
	set, err := ask(ctx, c, c.system.SetSuffixes, &adminv1.SetSuffixesRequest{Suffixes: s.Suffix})
	if err != nil {
		return err
	}
	return c.print.show(set, func(w io.Writer) {
		fmt.Fprintf(w, "App names now end in %s.\n", clean(strings.Join(set.Suffixes, ", ")))
		writeWarnings(w, set.Warnings)
	})
}
