// Package identitytest signs people in without a person: it opens the real pages of a broker
// with an HTTP client, fills in the forms and follows the redirects, as a browser without
// JavaScript does. Tests and the scenario suite use it; programs must not import it.
//
// A Browser keeps cookies and belongs to one goroutine.
package identitytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"

	"golang.org/x/net/html"
)

// maxPage bounds what is read of a page.
const maxPage = 1 << 20

// Browser opens pages.
type Browser struct {
	client *http.Client
}

// NewBrowser returns a browser without cookies. transport may be nil; it is where a test
// trusts the broker's certificate.
func NewBrowser(transport http.RoundTripper) *Browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		panic(err) // never without options
	}
	return &Browser{client: &http.Client{Transport: transport, Jar: jar, CheckRedirect: stopAtCallback}}
}

// stopAtCallback does not visit a client's loopback address: nobody listens there in a test.
func stopAtCallback(r *http.Request, via []*http.Request) error {
	if isCallback(r.URL) {
		return http.ErrUseLastResponse
	}
	if len(via) > 10 {
		return errors.New("more than 10 redirects")
	}
	return nil
}

func isCallback(u *url.URL) bool { return u.Scheme == "http" && u.Path == "/callback" }

// Page is what a browser shows.
type Page struct {
	Status int
	URL    *url.URL
	Header http.Header
	// Source is the page as it came; Text is what it says, white space folded.
	Source string
	Text   string
	// Callback is set instead of the page when the browser was sent to a client's loopback
	// address.
	Callback *url.URL

	browser *Browser
	action  *url.URL
	fields  url.Values
	links   map[string]*url.URL
}

// Open shows the page at u.
func (b *Browser) Open(ctx context.Context, u string) (*Page, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	return b.do(req)
}

// Submit fills in the page's form and sends it. Fields not named keep what the page put in.
func (p *Page) Submit(ctx context.Context, values map[string]string) (*Page, error) {
	if p.action == nil {
		return nil, fmt.Errorf("the page has no form: %s", p.Text)
	}
	form := url.Values{}
	for name, v := range p.fields {
		form[name] = v
	}
	for name, v := range values {
		form.Set(name, v)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.action.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", p.URL.Scheme+"://"+p.URL.Host)
	return p.browser.do(req)
}

// Follow opens the link with this text.
func (p *Page) Follow(ctx context.Context, text string) (*Page, error) {
	u, ok := p.links[text]
	if !ok {
		return nil, fmt.Errorf("the page has no link %q: %s", text, p.Text)
	}
	return p.browser.Open(ctx, u.String())
}

// Field returns what the form holds in a field.
func (p *Page) Field(name string) string { return p.fields.Get(name) }

func (b *Browser) do(req *http.Request) (*Page, error) {
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read in full below
	p := &Page{
		Status: resp.StatusCode, URL: resp.Request.URL, Header: resp.Header, browser: b,
		fields: url.Values{}, links: map[string]*url.URL{},
	}
	if location, err := resp.Location(); err == nil && isCallback(location) {
		p.Callback = location
		return p, nil
	}
	source, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", req.URL.Path, err)
	}
	p.Source = string(source)
	root, err := html.Parse(strings.NewReader(p.Source))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", req.URL.Path, err)
	}
	p.read(root)
	p.Text = strings.Join(strings.Fields(p.Text), " ")
	return p, nil
}

// read collects text, links and the form. The pages have one form each.
func (p *Page) read(n *html.Node) {
	switch {
	case n.Type == html.TextNode:
		p.Text += " " + n.Data
	case n.Data == "form":
		p.action = p.resolve(attr(n, "action"))
	case n.Data == "input":
		p.fields.Set(attr(n, "name"), attr(n, "value"))
	case n.Data == "textarea":
		p.fields.Set(attr(n, "name"), textOf(n))
	case n.Data == "a":
		p.links[textOf(n)] = p.resolve(attr(n, "href"))
	}
	for c := range n.ChildNodes() {
		p.read(c)
	}
}

func (p *Page) resolve(ref string) *url.URL {
	u, err := p.URL.Parse(ref)
	if err != nil {
		return p.URL
	}
	return u
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func textOf(n *html.Node) string {
	var text strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			text.WriteString(d.Data)
		}
	}
	return strings.TrimSpace(text.String())
}
