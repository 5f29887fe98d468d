package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/html"

	"github.com/postern-zt/postern/netstack/control"
)

const (
	maxPage     = 1 << 20
	pageTimeout = 20 * time.Second
)

// invitation finds an invitation link in the text of a page.
var invitation = regexp.MustCompile(`https://\S+/invite#\S+`)

// browser is a person's browser without JavaScript: it keeps cookies, follows redirects
// and sends forms.
type browser struct{ client *http.Client }

// browser opens one on a machine. It trusts the broker by its pin, as a person would who
// compares what the terminal shows.
func (d *demo) browser(on machine) *browser {
	jar, _ := cookiejar.New(nil) // never fails without options
	where := d.net.place(on)
	return &browser{&http.Client{Jar: jar, Timeout: pageTimeout, Transport: &http.Transport{
		DialContext: where.dial, DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialPinned(ctx, where, d.url, addr)
		},
	}}}
}

func dialPinned(ctx context.Context, where place, brokerURL, addr string) (net.Conn, error) {
	broker, err := control.ParseURL(brokerURL)
	if err != nil {
		return nil, err
	}
	raw, err := where.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: true, // VerifyConnection does the whole verification
		VerifyConnection: func(cs tls.ConnectionState) error {
			return control.VerifyServer(cs, broker.Pin, control.KindBroker, "", time.Now())
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// shown is a page.
type shown struct {
	url    *url.URL
	text   string
	action *url.URL
	fields url.Values
}

func newShown(at string) *shown {
	u, err := url.Parse(at)
	if err != nil {
		u = &url.URL{} // its form then leads nowhere
	}
	return &shown{url: u, fields: url.Values{}}
}

// submitAt opens the page at link, fills in its form and sends it.
func (b *browser) submitAt(ctx context.Context, link string, values map[string]string) (*shown, error) {
	page, err := b.open(ctx, link)
	if err != nil {
		return nil, err
	}
	return b.submit(ctx, page, values)
}

func (b *browser) open(ctx context.Context, link string) (*shown, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return nil, err
	}
	return b.do(req)
}

func (b *browser) submit(ctx context.Context, page *shown, values map[string]string) (*shown, error) {
	if page.action == nil {
		return nil, fmt.Errorf("the page has no form: %.200s", page.text)
	}
	for name, v := range values {
		page.fields.Set(name, v)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, page.action.String(), strings.NewReader(page.fields.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", page.url.Scheme+"://"+page.url.Host)
	return b.do(req)
}

func (b *browser) do(req *http.Request) (*shown, error) {
	resp, err := b.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) { // the URL may hold a code
			err = ue.Err
		}
		return nil, fmt.Errorf("page %s: %w", req.URL.Path, err)
	}
	defer resp.Body.Close()
	root, err := html.Parse(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("page %s: %w", req.URL.Path, err)
	}
	p := newShown(resp.Request.URL.String())
	p.read(root)
	p.text = strings.Join(strings.Fields(p.text), " ")
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("page %s: %s: %.300s", req.URL.Path, resp.Status, p.text)
	}
	return p, nil
}

// read collects the text and the form; the pages have one form each.
func (p *shown) read(n *html.Node) {
	switch {
	case n.Type == html.TextNode:
		p.text += " " + n.Data
	case n.Data == "form":
		p.action, _ = p.url.Parse(attribute(n, "action")) // nil is no form
	case n.Data == "input":
		p.fields.Set(attribute(n, "name"), attribute(n, "value"))
	}
	for c := range n.ChildNodes() {
		p.read(c)
	}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}
