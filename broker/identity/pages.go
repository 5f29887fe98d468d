package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"unicode"

	"github.com/zitadel/oidc/v3/pkg/op"
)

// Paths of the pages.
const (
	loginPath   = "/login"
	withPath    = "/login/with"
	returnPath  = "/login/return"
	devicePath  = "/device"
	confirmPath = "/device/confirm"
	setupPath   = "/setup"
	invitePath  = "/invite"
	stylePath   = "/static/style.css"
)

const (
	browserCookie = "postern-signin"
	// securePrefix has browsers take the cookie from this very host over TLS only, so that
	// nobody on a neighbouring name can plant one (RFC 6265bis section 4.1.3.2).
	securePrefix = "__Host-"
	// maxForm bounds a posted form; the longest is the set-up page with its list of people.
	maxForm = 64 << 10
	// cookieAge outlives a flow; nothing else hangs on the cookie.
	cookieAge = 24 * 60 * 60
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/style.css
var styleSheet []byte

// pageTemplates are parsed at first use of the package; a broken template fails each test.
var pageTemplates = parseTemplates()

func parseTemplates() map[string]*template.Template {
	pages := map[string]*template.Template{}
	for _, name := range []string{"home", "login", "device", "confirm", "setup", "setup_done", "invite", "message"} {
		pages[name] = template.Must(template.ParseFS(templateFiles, "templates/layout.html", "templates/"+name+".html"))
	}
	return pages
}

// page is what every template gets.
type page struct {
	Title string
	CSRF  string
	// Error is a sentence for the person, above the form.
	Error string
	// Data is what the template of this page needs.
	Data any
	// formTarget is an origin outside of ours that the form's redirects may reach.
	formTarget string
	status     int
}

// Handler serves the provider and the pages.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	s.mountProvider(mux)
	mux.HandleFunc("GET /{$}", s.serveHome)
	mux.HandleFunc("GET "+stylePath, serveStyle)
	mux.HandleFunc("GET "+loginPath, s.serveLogin)
	mux.HandleFunc("POST "+loginPath, s.form(s.postLogin))
	mux.HandleFunc("GET "+withPath, s.serveWith)
	mux.HandleFunc("GET "+returnPath, s.serveReturn)
	mux.HandleFunc("GET "+devicePath, s.serveDevice)
	mux.HandleFunc("POST "+devicePath, s.form(s.postDevice))
	mux.HandleFunc("GET "+confirmPath, s.serveConfirm)
	mux.HandleFunc("POST "+confirmPath, s.form(s.postConfirm))
	mux.HandleFunc("GET "+setupPath, s.serveSetup)
	mux.HandleFunc("POST "+setupPath, s.form(s.postSetup))
	mux.HandleFunc("GET "+invitePath, s.serveInvite)
	mux.HandleFunc("POST "+invitePath, s.form(s.postInvite))
	return http.NewCrossOriginProtection().Handler(s.guard(mux))
}

// guard puts the same headers on each answer and bounds each request.
func (s *Service) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policyFor(""))
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r.WithContext(op.ContextWithIssuer(r.Context(), s.Issuer())))
	})
}

// policyFor allows our style sheet, our forms, and nothing else. Browsers apply form-action
// to the redirects after a form, so the sign-in page names its client's loopback origin.
func policyFor(formTarget string) string {
	forms := "'self'"
	if formTarget != "" {
		forms += " " + formTarget
	}
	return "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action " + forms
}

// loopbackOrigin returns the origin of a client's redirect address. CSP has no form for IPv6
// addresses, so there the scheme has to do.
func loopbackOrigin(redirect string) string {
	u, err := url.Parse(redirect)
	if err != nil || u.Host == "" {
		return ""
	}
	if strings.Contains(u.Host, "[") {
		return "http:"
	}
	return "http://" + u.Host
}

// serveHome tells whoever comes without a path where to go; it says nothing of this broker.
func (s *Service) serveHome(w http.ResponseWriter, r *http.Request) {
	s.show(w, r, "home", page{Title: "This is Postern"})
}

func serveStyle(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=3600")
	_, _ = w.Write(styleSheet) // the browser may be gone
}

// show renders a page.
func (s *Service) show(w http.ResponseWriter, r *http.Request, name string, p page) {
	p.CSRF = s.csrfToken(s.ensureBrowser(w, r))
	var body bytes.Buffer
	if err := pageTemplates[name].ExecuteTemplate(&body, "layout", p); err != nil {
		s.log.ErrorContext(r.Context(), "page cannot be rendered", "name", name, "error", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Security-Policy", policyFor(p.formTarget))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if p.status != 0 {
		w.WriteHeader(p.status)
	}
	_, _ = body.WriteTo(w) // the browser may be gone
}

// message is the page with a heading and a sentence.
func (s *Service) message(w http.ResponseWriter, r *http.Request, status int, title, text string) {
	s.show(w, r, "message", page{Title: title, Data: text, status: status})
}

func (s *Service) gone(w http.ResponseWriter, r *http.Request) {
	s.message(w, r, http.StatusBadRequest, "This sign-in has ended",
		"It is too old, was used already, or belongs to another browser. Start again from your device, for example with: postern up")
}

// fail logs an error of ours and shows none of it.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if errors.Is(err, ErrBusy) {
		s.message(w, r, http.StatusServiceUnavailable, "Too many people at once", "Please try again in a minute.")
		return
	}
	s.log.ErrorContext(r.Context(), "sign-in page failed", "path", r.URL.Path, "error", err)
	s.message(w, r, http.StatusInternalServerError, "Something went wrong", "The cause is in the broker's log. Please try again.")
}

// form parses a posted form and checks its token before the handler runs.
func (s *Service) form(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			s.message(w, r, http.StatusBadRequest, "The form is too long", "Please go back and shorten it.")
			return
		}
		browser := s.browserOf(r)
		if browser == "" || !hmac.Equal([]byte(r.PostForm.Get("csrf")), []byte(s.csrfToken(browser))) {
			s.message(w, r, http.StatusForbidden, "The form has expired", "Please go back, reload the page and try again. Cookies must be allowed for this page.")
			return
		}
		next(w, r)
	}
}

func (s *Service) csrfToken(browser string) string {
	mac := hmac.New(sha256.New, s.csrf)
	mac.Write([]byte(browser))
	return hex.EncodeToString(mac.Sum(nil))
}

// browserOf returns the hash of the browser's cookie, or "".
func (s *Service) browserOf(r *http.Request) string {
	name, _ := cookieFor(r)
	c, err := r.Cookie(name)
	if err != nil || len(c.Value) != 43 {
		return ""
	}
	return hashKey(c.Value)
}

// cookieFor names the browser's cookie and says whether it is Secure: always, except behind
// a loopback proxy, where the browser speaks plain HTTP to its own machine.
func cookieFor(r *http.Request) (name string, secure bool) {
	if loopbackHost(hostOnly(r.Host)) {
		return browserCookie, false
	}
	return securePrefix + browserCookie, true
}

// ensureBrowser gives a browser its cookie if it has none and returns the hash. The cookie
// is random and means nothing by itself.
func (s *Service) ensureBrowser(w http.ResponseWriter, r *http.Request) string {
	if b := s.browserOf(r); b != "" {
		return b
	}
	value := newToken()
	name, secure := cookieFor(r)
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: cookieAge, // a __Host- cookie has Path=/ and no Domain
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: secure,
	})
	r.AddCookie(&http.Cookie{Name: name, Value: value}) // for later calls in this request
	return hashKey(value)
}

func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// remoteAddr is the address of the TCP peer. Forwarding headers are not believed.
func remoteAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// displayName cuts what a stranger wrote to something that can be shown in one line.
func displayName(s string) string {
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	runes := []rune(strings.TrimSpace(clean))
	if len(runes) > 64 {
		runes = runes[:64]
	}
	return string(runes)
}
