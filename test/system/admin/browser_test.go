//go:build unix

package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/html"

	"github.com/postern-zt/postern/netstack/control"
)

const (
	signInTime = time.Minute
	password   = "correct horse battery"
)

// startPage is what `postern up` asks the person to open.
var startPage = regexp.MustCompile(`http://127\.0\.0\.1:[0-9]+/\S+`)

// accept redeems an invitation: accept LINK.
func accept(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: accept LINK")
	}
	ctx, cancel := context.WithTimeout(context.Background(), signInTime)
	defer cancel()
	link, code, _ := strings.Cut(args[0], "#")
	_, err := newBrowser(ts.Getenv("BROKER")).submit(ctx, link, url.Values{
		"code": {code}, "password": {password}, "again": {password},
	})
	ts.Check(err)
}

// signIn runs `postern up` for a device with the state directory DIR and does in the
// browser what LOGIN would do: sign-in LOGIN DIR.
func signIn(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sign-in LOGIN DIR")
	}
	ctx, cancel := context.WithTimeout(context.Background(), signInTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(ts, "postern"), "up", ts.Getenv("BROKER"), "--state", ts.MkAbs(args[1]), "--socket", ts.MkAbs("no-daemon"))
	cmd.Env = []string{"HOME=" + ts.Getenv("HOME"), "PATH=" + ts.Getenv("PATH")}
	r, w, err := os.Pipe()
	ts.Check(err)
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	ts.Check(err)
	text, browsed := follow(ctx, r, func(link string) error {
		_, err := newBrowser(ts.Getenv("BROKER")).submit(ctx, link, url.Values{"login": {args[0]}, "password": {password}})
		return err
	})
	err = cmd.Wait()
	ts.Logf("%s", text)
	ts.Check(browsed)
	ts.Check(err)
}

// follow reads output to its end and opens the first page that it names.
func follow(ctx context.Context, r io.Reader, open func(link string) error) (text string, err error) {
	err = fmt.Errorf("no page to open was printed: %w", os.ErrNotExist)
	opened := false
	for lines := bufio.NewScanner(r); lines.Scan() && ctx.Err() == nil; {
		text += lines.Text() + "\n"
		if link := startPage.FindString(lines.Text()); link != "" && !opened {
			opened, err = true, open(link)
		}
	}
	return text, err
}

func program(ts *testscript.TestScript, name string) string {
	return filepath.Join(strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0], name)
}

// browser keeps cookies, follows redirects and sends forms; it trusts the broker's pin.
type browser struct{ client *http.Client }

func newBrowser(broker string) *browser {
	jar, _ := cookiejar.New(nil) // never fails without options
	return &browser{&http.Client{Jar: jar, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			b, err := control.ParseURL(broker)
			if err != nil {
				return nil, err
			}
			d := tls.Dialer{Config: &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true,
				VerifyConnection: func(cs tls.ConnectionState) error {
					return control.VerifyServer(cs, b.Pin, control.KindBroker, "", time.Now())
				},
			}}
			return d.DialContext(ctx, network, addr)
		},
	}}}
}

// submit opens a page, fills in its form and returns the page that follows.
func (b *browser) submit(ctx context.Context, link string, values url.Values) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return "", err
	}
	at, page, err := b.do(req)
	if err != nil {
		return "", err
	}
	action, fields := form(page)
	if action == "" {
		return "", fmt.Errorf("no form at %s", at.Path)
	}
	for k, v := range values {
		fields[k] = v
	}
	to, err := at.Parse(action)
	if err != nil {
		return "", err
	}
	req, err = http.NewRequestWithContext(ctx, http.MethodPost, to.String(), strings.NewReader(fields.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", at.Scheme+"://"+at.Host)
	_, page, err = b.do(req)
	return text(page), err
}

func (b *browser) do(req *http.Request) (*url.URL, *html.Node, error) {
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	page, err := html.Parse(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", resp.Request.URL.Path, resp.Status, text(page))
	}
	return resp.Request.URL, page, err
}

// form returns the one form of a page with its hidden fields.
func form(page *html.Node) (action string, fields url.Values) {
	fields = url.Values{}
	for n := range page.Descendants() {
		attr := map[string]string{}
		for _, a := range n.Attr {
			attr[a.Key] = a.Val
		}
		switch n.Data {
		case "form":
			action = attr["action"]
		case "input":
			fields.Set(attr["name"], attr["value"])
		}
	}
	return action, fields
}

func text(page *html.Node) string {
	var words []string
	for n := range page.Descendants() {
		if n.Type == html.TextNode {
			words = append(words, strings.Fields(n.Data)...)
		}
	}
	return strings.Join(words, " ")
}
