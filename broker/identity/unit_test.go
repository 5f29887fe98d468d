package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
)

func TestSecretsAreNotPrinted(t *testing.T) {
	code := newCode()
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "code", code, "secret", code.Secret)
	raw, err := json.Marshal(map[string]any{"code": code})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{log.String(), string(raw), fmt.Sprintf("%v %+v %#v %s", code, code, code, code)} {
		if strings.Contains(text, code.Reveal()) || !strings.Contains(text, redacted) {
			t.Errorf("printed: %s", text)
		}
	}
}

func TestParseCode(t *testing.T) {
	code := newCode()
	plain := strings.ReplaceAll(code.Reveal(), "-", "")
	for _, typed := range []string{
		code.Reveal(), strings.ToLower(plain), " " + plain + "\n", "#" + plain, "https://b.example/setup#" + code.Reveal(),
		strings.NewReplacer("0", "o", "1", "l").Replace(plain),
	} {
		if got := parseCode(typed); got != code {
			t.Errorf("parseCode(%q) = %q", typed, got.Reveal())
		}
	}
	for _, typed := range []string{"", "#", plain[1:], plain + "A"} {
		if !parseCode(typed).IsZero() {
			t.Errorf("parseCode(%q) is a code", typed)
		}
	}
}

func FuzzParseCode(f *testing.F) {
	f.Add("7F3KQ-00000-11111-22222")
	f.Add("https://b.example/setup#oil")
	f.Fuzz(func(t *testing.T, s string) {
		if c := parseCode(s); !c.IsZero() && parseCode(c.Reveal()) != c {
			t.Errorf("parseCode(%q) is not stable", s)
		}
	})
}

func TestHasher(t *testing.T) {
	h := newHasher(HashParams{MemoryKiB: 64, Time: 1, Threads: 1})
	encoded, err := h.hash(t.Context(), NewSecret("correct horse battery"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		password, encoded string
		want              bool
	}{
		"right": {"correct horse battery", encoded, true}, "wrong": {"correct horse", encoded, false},
		"empty": {"", encoded, false}, "no user": {"correct horse battery", "", false}, "empty, no user": {"", "", false},
		"too long": {strings.Repeat("a", maxPassword+1), encoded, false},
	} {
		if got, err := h.verify(t.Context(), NewSecret(c.password), c.encoded); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := h.verify(t.Context(), NewSecret("x"), encoded[:len(encoded)-4]); !errors.Is(err, errHash) {
		t.Errorf("damaged hash: %v", err)
	}
}

func TestHasherIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(HashParams{MemoryKiB: 64, Time: 1, Threads: 1})
		for range cap(h.slots) {
			if _, err := h.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if _, err := h.hash(t.Context(), NewSecret("x")); !errors.Is(err, ErrBusy) || time.Since(start) != hashWait {
			t.Errorf("with all slots taken: %v after %v", err, time.Since(start))
		}
		<-h.slots
		if _, err := h.hash(t.Context(), NewSecret("x")); err != nil {
			t.Errorf("with a free slot: %v", err)
		}
	})
}

func FuzzDecodeHash(f *testing.F) {
	f.Add(encodeHash(DefaultHash(), make([]byte, saltLen), make([]byte, hashLen)))
	f.Add("$argon2id$v=19$m=4294967295,t=4294967295,p=255$AAAA$AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		p, _, sum, err := decodeHash(s)
		if err == nil && (p.MemoryKiB > maxHashMemory || p.Time > maxHashTime || p.Threads == 0 || len(sum) != hashLen) {
			t.Errorf("decodeHash(%q) accepts %+v", s, p)
		}
	})
}

func TestThrottleShutsAndDecays(t *testing.T) {
	th, now := newThrottle(), time.Unix(1e9, 0)
	account := accountKey(" Ann ")
	if account != accountKey("ann") {
		t.Error("spelling makes another account")
	}
	for i := range accountFree {
		if th.failed(now, account); th.shut(now, account) {
			t.Fatalf("shut after %d failures", i+1)
		}
	}
	var last time.Duration
	for range 20 {
		th.failed(now, account)
		wait := th.keys[account].until.Sub(now)
		if wait < last || wait > accountMost {
			t.Errorf("wait %v after %v", wait, last)
		}
		last = wait
	}
	if !th.shut(now.Add(accountMost-1), account) || th.shut(now.Add(accountMost), account) {
		t.Error("the lockout does not end with its time")
	}
	later := now.Add(3 * throttleHalfLife)
	if th.failed(later, account); th.shut(later, account) {
		t.Error("failures do not decay")
	}
	th.failed(later, account)
	th.succeeded(account)
	if th.shut(later, account) || th.shut(now, addressKey(netip.MustParseAddr("192.0.2.1"))) {
		t.Error("shut without failures")
	}
}

func TestThrottleGroupsIPv6AndBoundsMemory(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff")
	if addressKey(a) != addressKey(b) || addressKey(a) == addressKey(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("IPv6 addresses are not grouped by /64")
	}
	if addressKey(netip.MustParseAddr("::ffff:192.0.2.1")) != addressKey(netip.MustParseAddr("192.0.2.1")) {
		t.Error("a mapped address is another address")
	}
	th, now := newThrottle(), time.Unix(1e9, 0)
	guarded := accountKey("victim")
	for range 30 {
		th.failed(now, guarded)
	}
	for i := range 2 * throttleKeys {
		th.failed(now, accountKey(fmt.Sprint(i)))
	}
	if len(th.keys) > throttleKeys {
		t.Errorf("%d keys", len(th.keys))
	}
	if !th.shut(now, guarded) {
		t.Error("a flood of other names ended a lockout")
	}
}

func TestBackoffDoublesUpToItsMost(t *testing.T) {
	var b backoff
	now := time.Unix(1e9, 0)
	for _, want := range []time.Duration{1, 2, 4, 8} {
		if b.failed(now); b.pause != want*time.Second || b.allowed(now.Add(b.pause-1)) || !b.allowed(now.Add(b.pause)) {
			t.Errorf("pause %v, want %v", b.pause, want*time.Second)
		}
	}
	for range 20 {
		b.failed(now)
	}
	if b.pause != backoffMost {
		t.Errorf("pause %v", b.pause)
	}
	if b.succeeded(); !b.allowed(now) {
		t.Error("success does not end the pause")
	}
}

func TestKeyedLockIsHeldByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newKeyedLock()
		unlock, err := l.lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.lock(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("second holder: %v", err)
		}
		unlock()
		if unlock, err = l.lock(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		unlock()
		if len(l.held) != 0 {
			t.Errorf("%d locks left behind", len(l.held))
		}
	})
}

func TestReasonOfUnknownErrorsIsARefusal(t *testing.T) {
	if got := ReasonOf(errors.New("disk")); got != ReasonUnverified {
		t.Errorf("ReasonOf = %q", got)
	}
	if got := ReasonOf(fmt.Errorf("x: %w", refuse(ReasonTokenKey, nil))); got != ReasonTokenKey {
		t.Errorf("ReasonOf = %q", got)
	}
}

func TestClaimsCheckBoundaries(t *testing.T) {
	now := time.Unix(1e9, 0)
	good := tokenClaims{Issuer: "i", Subject: "s", Audience: audience{"x", "a"}, Expiry: 1e9 + 1}
	for name, c := range map[string]struct {
		change func(*tokenClaims)
		want   Reason
	}{
		"good":            {func(*tokenClaims) {}, ""},
		"expires now":     {func(c *tokenClaims) { c.Expiry = 1e9 }, ReasonTokenExpired},
		"no expiry":       {func(c *tokenClaims) { c.Expiry = 0 }, ReasonTokenExpired},
		"absurd expiry":   {func(c *tokenClaims) { c.Expiry = 1e300 }, ReasonTokenExpired},
		"negative expiry": {func(c *tokenClaims) { c.Expiry = -1 }, ReasonTokenExpired},
		"nbf in leeway":   {func(c *tokenClaims) { c.NotBefore = 1e9 + 299 }, ""},
		"nbf beyond":      {func(c *tokenClaims) { c.NotBefore = 1e9 + 301 }, ReasonTokenNotYet},
		"iat beyond":      {func(c *tokenClaims) { c.IssuedAt = 1e9 + 301 }, ReasonTokenNotYet},
		"no audience":     {func(c *tokenClaims) { c.Audience = nil }, ReasonTokenAudience},
		"no issuer":       {func(c *tokenClaims) { c.Issuer = "" }, ReasonTokenIssuer},
		"no subject":      {func(c *tokenClaims) { c.Subject = "" }, ReasonTokenSubject},
	} {
		claims := good
		c.change(&claims)
		if got := ReasonOf(claims.check("i", "a", now, 0)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzVerifySignature(f *testing.F) {
	f.Add("eyJhbGciOiJFUzI1NiJ9.e30.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("...")
	f.Fuzz(func(t *testing.T, token string) {
		payload, err := verifySignature(t.Context(), token, "i", []string{"ES256"}, &gooidc.StaticKeySet{})
		if err == nil {
			t.Errorf("verified without a key: %s", payload)
		}
	})
}

func FuzzParseClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"i","aud":["a"],"exp":1,"cnf":{"postern_key":"00"}}`))
	f.Add([]byte(`{"aud":"a","exp":1e400}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseClaims(raw)
		if err == nil && c.check("no such issuer", "a", time.Unix(1e9, 0), 0) == nil {
			t.Errorf("accepted %s", raw)
		}
	})
}
