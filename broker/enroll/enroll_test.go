package enroll_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/enroll"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

var day = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)

// create makes a token text with a store that forgets everything.
func create(t testing.TB, site string) string {
	t.Helper()
	_, text, err := enroll.New(forgetful{}, nil).Create(t.Context(), enroll.Wish{Kind: enroll.ForConnector, Site: ids.New[ids.SiteID](), SiteName: site}, day)
	if err != nil {
		t.Fatal(err)
	}
	return text.Reveal()
}

func TestParseTextAcceptsPastes(t *testing.T) {
	token := create(t, "Berlin-Mitte")
	if !strings.HasPrefix(token, "pst_join_berlinmitte_") {
		t.Errorf("token begins %q, want the site's name without a hyphen", token[:20])
	}
	for _, pasted := range []string{
		token, " " + token + "\r\n", `"` + token + `"`, strings.ToUpper(token),
		token[:40] + "\n  " + token[40:], "\ufeff" + token + "\u200b",
	} {
		if got, err := enroll.ParseText(pasted); err != nil || got.Reveal() != token {
			t.Errorf("ParseText(%q): %v", pasted, err)
		}
	}
}

func TestParseTextSaysWhatIsWrong(t *testing.T) {
	token := create(t, "berlin")
	last := token[len(token)-1]
	swapped := token[:20] + flip(token[20]) + token[21:]
	cases := []struct{ name, pasted, want string }{
		{"empty", "", "does not begin"},
		{"a link", "https://broker.example/#pst_join", "does not begin"},
		{"one character short", token[:len(token)-1], "the end is missing: 37 of 38"},
		{"half", token[:len(token)/2], "the end is missing"},
		{"prefix only", "pst_join_berlin_", "the end is missing: 0 of 38"},
		{"no secret", "pst_join_berlin", "damaged"},
		{"more behind", token + "x", "1 characters behind its end"},
		{"changed", swapped, "a character was changed"},
		{"changed check", token[:len(token)-1] + flip(last), "a character was changed"},
		{"long", strings.Repeat("pst_join_", 100), "900 characters"},
	}
	for _, c := range cases {
		_, err := enroll.ParseText(c.pasted)
		if !errors.Is(err, enroll.ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && len(c.pasted) > 24 && strings.Contains(err.Error(), c.pasted[16:24]) {
			t.Errorf("%s: the error repeats the paste: %v", c.name, err)
		}
	}
	for i := range len(token) {
		if _, err := enroll.ParseText(token[:i]); enroll.Reason(err) != "token_malformed" {
			t.Errorf("a token cut after %d characters was accepted", i)
		}
	}
}

// flip returns another character of the alphabet.
func flip(c byte) string {
	if c == '7' {
		return "8"
	}
	return "7"
}

func TestTextIsRedacted(t *testing.T) {
	token := create(t, "berlin")
	text, err := enroll.ParseText(token)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := json.Marshal(map[string]any{"token": text})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "token", text)
	outs := []string{fmt.Sprint(text), fmt.Sprintf("%v %+v %#v %s %q %x %d", text, text, text, text, text, text, text), string(blob), log.String()}
	secret := token[len("pst_join_berlin_"):]
	for _, out := range outs {
		if strings.Contains(out, secret) || strings.Contains(out, fmt.Sprintf("%x", secret)) || !strings.Contains(out, "pst_join_...") {
			t.Errorf("not redacted: %s", out)
		}
	}
}

func TestTokensDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		token := create(t, "x")
		if seen[token] {
			t.Fatal("a token came twice")
		}
		seen[token] = true
	}
}

func TestCreateRefuses(t *testing.T) {
	site := ids.New[ids.SiteID]()
	cases := []struct {
		name string
		w    enroll.Wish
	}{
		{"no kind", enroll.Wish{Site: site}},
		{"unknown kind", enroll.Wish{Kind: "client", Site: site}},
		{"connector without site", enroll.Wish{Kind: enroll.ForConnector}},
		{"relay with site", enroll.Wish{Kind: enroll.ForRelay, Site: site}},
		{"relay that publishes", enroll.Wish{Kind: enroll.ForRelay, MayPublish: true}},
		{"for ever", enroll.Wish{Kind: enroll.ForRelay, TTL: 10000 * time.Hour}},
		{"backwards", enroll.Wish{Kind: enroll.ForRelay, TTL: -1}},
		{"long label", enroll.Wish{Kind: enroll.ForRelay, Label: strings.Repeat("x", 200)}},
	}
	for _, c := range cases {
		if _, _, err := enroll.New(forgetful{}, nil).Create(t.Context(), c.w, day); !errors.Is(err, enroll.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", c.name, err)
		}
	}
}

func TestMayRenew(t *testing.T) {
	const d = 24 * time.Hour
	cases := []struct {
		name     string
		state    registry.State
		notAfter time.Time
		renewFor time.Duration
		want     error
	}{
		{"valid", registry.Active, day.Add(d), 0, nil},
		{"first", registry.Active, time.Time{}, 0, nil},
		{"10 days over", registry.Active, day.Add(-10 * d), 0, nil},
		{"90 days over", registry.Active, day.Add(-90 * d), 0, nil},
		{"more than 90 days over", registry.Active, day.Add(-90*d - 1), 0, enroll.ErrTooOld},
		{"setting", registry.Active, day.Add(-10 * d), 9 * d, enroll.ErrTooOld},
		{"blocked, 10 days over", registry.Blocked, day.Add(-10 * d), 0, registry.ErrBlocked},
		{"blocked, valid", registry.Blocked, day.Add(d), 0, registry.ErrBlocked},
		{"removed", registry.Removed, day.Add(d), 0, registry.ErrRemoved},
		{"no state", "", day.Add(d), 0, registry.ErrBlocked},
		{"unknown state", "new", day.Add(d), 0, registry.ErrBlocked},
	}
	for _, c := range cases {
		if err := enroll.MayRenew(c.state, c.notAfter, c.renewFor, day); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzParseText(f *testing.F) {
	f.Add(create(f, "berlin"))
	f.Add("pst_join_")
	f.Add("pst_join_x_")
	f.Add("\"pst_join_x_0\n\"")
	f.Fuzz(func(t *testing.T, s string) {
		text, err := enroll.ParseText(s)
		if err != nil {
			if enroll.Reason(err) != "token_malformed" {
				t.Errorf("ParseText(%q) = %v without a reason", s, err)
			}
			return
		}
		if again, err := enroll.ParseText(text.Reveal()); err != nil || again != text {
			t.Errorf("ParseText(%q) is not stable: %v", s, err)
		}
	})
}
