package identity_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestBrowserCookie: over TLS nobody else's cookie is taken; behind a loopback proxy, where
// browsers refuse the prefix, a plain name serves.
func TestBrowserCookie(t *testing.T) {
	w := newWorld(t)
	for host, want := range map[string]http.Cookie{
		"broker.example":      {Name: "__Host-postern-signin", Secure: true},
		"broker.example:8443": {Name: "__Host-postern-signin", Secure: true},
		"127.0.0.1:4711":      {Name: "postern-signin"},
	} {
		ask := func(c *http.Cookie) []*http.Cookie {
			r := httptest.NewRequest(http.MethodGet, "http://"+host+"/device", nil)
			if c != nil {
				r.AddCookie(c)
			}
			answer := httptest.NewRecorder()
			w.svc.Handler().ServeHTTP(answer, r)
			return answer.Result().Cookies()
		}
		got := ask(nil)
		if len(got) != 1 || got[0].Name != want.Name || got[0].Secure != want.Secure || got[0].Path != "/" || got[0].Domain != "" || !got[0].HttpOnly {
			t.Errorf("%s: cookies %v", host, got)
			continue
		}
		if again := ask(got[0]); len(again) != 0 {
			t.Errorf("%s: its own cookie was not known again: %v", host, again)
		}
		if planted := ask(&http.Cookie{Name: "postern-signin", Value: got[0].Value}); (len(planted) == 0) == want.Secure {
			t.Errorf("%s: a cookie without the prefix: new one given %v", host, len(planted) > 0)
		}
	}
}
