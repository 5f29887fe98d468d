package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
)

const (
	callbackPath = "/callback"
	startPath    = "/start/"
	startCookie  = "postern-start"
	maxHeader    = 32 << 10
	maxCode      = 4 << 10
	// goodbye lets the last page reach the browser.
	goodbye = 2 * time.Second
)

// loopback is the web server of one sign-in. It listens on 127.0.0.1, belongs to the
// browser that came first, and serves the broker's pages where the browser cannot trust
// the broker itself.
//
//	/start/SECRET   binds the browser by a cookie and leads to the broker's sign-in page
//	/callback       takes the code, from that browser and with the right state only
//	anything else   the broker's pages
type loopback struct {
	p        *provider
	listener net.Listener
	server   *http.Server
	served   chan struct{}
	state    string
	verifier string
	secret   string
	result   chan result

	mu      sync.Mutex // guards browser
	browser string
}

type result struct {
	code Secret
	err  error
}

func newLoopback(ctx context.Context, p *provider) (*loopback, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the browser: %w", err)
	}
	b := &loopback{
		p: p, listener: l, served: make(chan struct{}), state: rand.Text(), secret: rand.Text(),
		verifier: oauth2.GenerateVerifier(), result: make(chan result, 1),
	}
	b.server = &http.Server{
		Handler: b.guard(b.routes()), ReadHeaderTimeout: dialTimeout, ReadTimeout: requestTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // a browser that went away is nobody's error
	}
	go func() { // close waits for served
		defer close(b.served)
		_ = b.server.Serve(l) // always http.ErrServerClosed
	}()
	return b, nil
}

func (b *loopback) origin() string      { return "http://" + b.listener.Addr().String() }
func (b *loopback) startURL() string    { return b.origin() + startPath + b.secret }
func (b *loopback) redirectURL() string { return b.origin() + callbackPath }

func (b *loopback) close(ctx context.Context) {
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	if b.server.Shutdown(bye) != nil {
		b.server.Close()
	}
	<-b.served
}

func (b *loopback) wait(ctx context.Context) (Secret, error) {
	select {
	case r := <-b.result:
		return r.code, r.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (b *loopback) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+startPath+"{secret}", b.start)
	mux.HandleFunc("GET "+callbackPath, b.callback)
	if !b.p.trusted.Load() {
		mux.Handle("/", b.proxy())
	}
	return mux
}

// guard refuses requests that name another host: a page elsewhere must not reach us by
// giving its own name our address.
func (b *loopback) guard(next http.Handler) http.Handler {
	own := b.listener.Addr().String()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != own {
			http.Error(w, "not here", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// start binds the first browser and sends it to the sign-in page.
func (b *loopback) start(w http.ResponseWriter, r *http.Request) {
	if !same(r.PathValue("secret"), b.secret) || !b.claim(w, r) {
		page(w, http.StatusGone, "This sign-in was started in another browser", "Start again with: postern up")
		return
	}
	target := b.p.oauth(b.redirectURL()).AuthCodeURL(b.state, oauth2.S256ChallengeOption(b.verifier))
	if !b.p.trusted.Load() {
		target = b.local(target)
	}
	http.Redirect(w, r, target, http.StatusFound)
}

// claim reports whether the sign-in belongs to this browser, and gives it to the first.
func (b *loopback) claim(w http.ResponseWriter, r *http.Request) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.browser != "" {
		return b.ownsLocked(r)
	}
	b.browser = rand.Text()
	http.SetCookie(w, &http.Cookie{
		Name: startCookie, Value: b.browser, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(Patience.Seconds()),
	})
	return true
}

func (b *loopback) ownsLocked(r *http.Request) bool {
	c, err := r.Cookie(startCookie)
	return err == nil && same(c.Value, b.browser)
}

func same(got, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

// callback takes the answer once. What does not belong to this sign-in changes nothing.
func (b *loopback) callback(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	b.mu.Lock()
	own := b.ownsLocked(r)
	b.mu.Unlock()
	if !own || !same(q.Get("state"), b.state) {
		page(w, http.StatusBadRequest, "This answer belongs to another sign-in", "Start again with: postern up")
		return
	}
	res := result{code: Secret(q.Get("code"))}
	switch {
	case q.Get("error") != "":
		res.err = fmt.Errorf("%w: %.64q", ErrRefused, q.Get("error"))
	case res.code == "" || len(res.code) > maxCode:
		res.err = fmt.Errorf("%w: no code", ErrProvider)
	}
	select {
	case b.result <- res:
	default: // an answer came before
	}
	if res.err != nil {
		page(w, http.StatusOK, "You are not signed in", "The sign-in was refused. You can close this page.")
		return
	}
	page(w, http.StatusOK, "You are signed in", "You can close this page and go back to the terminal.")
}

// local turns an address of the broker into the same one here.
func (b *loopback) local(target string) string {
	rest, ok := strings.CutPrefix(target, b.p.cfg.Issuer)
	if ok && (rest == "" || rest[0] == '/' || rest[0] == '?') {
		return b.origin() + rest
	}
	return target
}

// proxy forwards pages. The broker sees the loopback name, so that it gives out cookies
// for plain HTTP and compares origins with the right one; cookies pass as they are.
func (b *loopback) proxy() http.Handler {
	broker := &url.URL{Scheme: "https", Host: b.p.cfg.Broker.Address}
	return &httputil.ReverseProxy{
		Transport: b.p.transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(broker)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Strict-Transport-Security")
			if to := resp.Header.Get("Location"); to != "" {
				resp.Header.Set("Location", b.local(to))
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				page(w, http.StatusBadGateway, "The broker cannot be reached", "Reload this page to try again.")
			}
		},
	}
}

// page shows one sentence.
func page(w http.ResponseWriter, status int, title, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!doctype html><meta charset=utf-8><title>%[1]s</title><h1>%[1]s</h1><p>%[2]s</p>\n", html.EscapeString(title), html.EscapeString(text))
}
