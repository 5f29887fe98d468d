package ticket_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/ticket"
	"github.com/postern-zt/postern/proto/tlv"
)

const relayID = ids.RelayID("rly_00000000000000000000000001")

var update = flag.Bool("update", false, "write a new oldest message; only for a new version of the format")

func signer() *seal.Signer {
	return seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
}

func relayKey(t testing.TB) ticket.PrivateKey {
	t.Helper()
	k, err := ticket.ParsePrivateKey(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func clientTicket() ticket.Ticket {
	return ticket.Ticket{
		Relay: relayID, Role: ticket.RoleClient, Handle: 0x11223344556677, Connector: 0x0a0b0c0d0e0f10,
		MACKey: ticket.MACKey(bytes.Repeat([]byte{0x42}, 32)), Holder: ids.KeyID(bytes.Repeat([]byte{0x24}, 32)),
		BytesPerSecond: 1 << 20, Flows: 8,
		NotBefore: time.Unix(1_800_000_000, 0), Expires: time.Unix(1_800_003_600, 0),
	}
}

func inside() time.Time { return time.Unix(1_800_000_060, 0) }

func open(t testing.TB, sealed []byte, now time.Time) (ticket.Ticket, error) {
	t.Helper()
	return ticket.Open(relayKey(t), seal.NewKeys(signer().Public()), relayID, sealed, now)
}

func mustSeal(t testing.TB, tk ticket.Ticket) []byte {
	t.Helper()
	b, err := ticket.Seal(relayKey(t).Public(), signer(), tk)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	connector := clientTicket()
	connector.Role, connector.Connector = ticket.RoleConnector, 0
	bare := clientTicket()
	bare.BytesPerSecond, bare.Flows = 0, 0
	for _, want := range []ticket.Ticket{clientTicket(), connector, bare} {
		b := mustSeal(t, want)
		if len(b) > 400 {
			t.Errorf("sealed ticket has %d bytes", len(b))
		}
		got, err := open(t, b, inside())
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("Open(Seal()) differs:\n%s", d)
		}
		if bytes.Contains(b, want.MACKey[:]) {
			t.Error("the MAC key is readable in the sealed ticket")
		}
	}
}

// TestOldestMessageOpens keeps the first ticket ever sealed readable.
func TestOldestMessageOpens(t *testing.T) {
	const file = "testdata/ticket-v1.hex"
	if *update {
		if err := os.WriteFile(file, []byte(hex.EncodeToString(mustSeal(t, clientTicket()))+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := open(t, b, inside())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if d := cmp.Diff(clientTicket(), got); d != "" {
		t.Errorf("oldest ticket differs:\n%s", d)
	}
}

// TestKnownInnerBytes pins the inner message field by field: it was written by hand.
func TestKnownInnerBytes(t *testing.T) {
	want := "030101" + // 1! role client
		"0508" + "f7ccd5a2b4c6c808" + // 2! handle, uvarint
		"0708" + "909eb8e8c0e18205" + // 3! connector, uvarint
		"0920" + strings.Repeat("42", 32) + // 4! MAC key
		"0b20" + strings.Repeat("24", 32) + // 5! holder
		"0d03" + "808040" + // 6! bytes per second
		"0f01" + "08" + // 7! flows
		"1105" + "80a4a7da06" + // 8! not before
		"1305" + "90c0a7da06" // 9! expires
	got := hex.EncodeToString(ticket.EncodeForTest(clientTicket()))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("inner message differs:\n%s", d)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := mustSeal(t, clientTicket())
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		b[(i+len(b))%len(b)] ^= 1
		return b
	}
	otherRelay := clientTicket()
	otherRelay.Relay = "rly_00000000000000000000000002"
	otherKey, err := ticket.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	sealedToOther, err := ticket.Seal(otherKey.Public(), signer(), clientTicket())
	if err != nil {
		t.Fatal(err)
	}
	stranger := seal.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize)))
	foreignSigner, err := ticket.Seal(relayKey(t).Public(), stranger, clientTicket())
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		sealed []byte
		now    time.Time
		want   error
		reason string
	}{
		"expired":             {good, clientTicket().Expires, ticket.ErrExpired, "expired"},
		"not yet":             {good, clientTicket().NotBefore.Add(-6 * time.Minute), ticket.ErrNotYet, "not_yet_valid"},
		"other relay":         {mustSeal(t, otherRelay), inside(), ticket.ErrForeign, "foreign_relay"},
		"other relay's key":   {sealedToOther, inside(), ticket.ErrForeign, "foreign_relay"},
		"other broker":        {foreignSigner, inside(), ticket.ErrSignature, "bad_signature"},
		"bit in ciphertext":   {flip(-1), inside(), ticket.ErrSignature, "bad_signature"},
		"bit in signature":    {flip(20), inside(), ticket.ErrSignature, "bad_signature"},
		"bit in version":      {flip(0), inside(), ticket.ErrMalformed, "malformed"},
		"empty":               {nil, inside(), ticket.ErrMalformed, "malformed"},
		"too large":           {make([]byte, ticket.MaxSealed+1), inside(), ticket.ErrMalformed, "malformed"},
		"other domain":        {signer().Seal(seal.Grant, []byte("x")), inside(), ticket.ErrSignature, "bad_signature"},
		"signed nonsense":     {signer().Seal(seal.Ticket, []byte{0xff}), inside(), ticket.ErrMalformed, "malformed"},
		"unknown outer field": {outerWith(t, 7), inside(), ticket.ErrUnsupported, "unsupported_constraint"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, tc.sealed, tc.now)
			if !errors.Is(err, tc.want) || ticket.Reason(err) != tc.reason {
				t.Errorf("Open = %v (%s), want %v (%s)", err, ticket.Reason(err), tc.want, tc.reason)
			}
		})
	}
	if _, err := open(t, good, clientTicket().NotBefore.Add(-4*time.Minute)); err != nil {
		t.Errorf("a clock 4 minutes behind: %v", err)
	}
}

// outerWith signs an outer message that has a further critical field.
func outerWith(t testing.TB, number uint32) []byte {
	t.Helper()
	var w tlv.Writer
	w.PutString(1, true, string(relayID))
	w.Put(2, true, []byte("ct"))
	w.Put(number, true, nil)
	return signer().Seal(seal.Ticket, w.Bytes())
}

func TestInnerMessageRefuses(t *testing.T) {
	base := ticket.EncodeForTest(clientTicket())
	critical := append(bytes.Clone(base), 0x15, 0x00)
	optional := append(bytes.Clone(base), 0x14, 0x00)
	if _, err := ticket.DecodeForTest(critical); !errors.Is(err, ticket.ErrUnsupported) {
		t.Errorf("unknown critical field: %v", err)
	}
	if _, err := ticket.DecodeForTest(optional); err != nil {
		t.Errorf("unknown optional field: %v", err)
	}
	if _, err := ticket.DecodeForTest(append([]byte{0x03, 0x01, 0x01}, base...)); !errors.Is(err, ticket.ErrMalformed) {
		t.Errorf("repeated field: %v", err)
	}
	for n := range base {
		got, err := ticket.DecodeForTest(base[:n])
		if err == nil && got.Expires.Equal(clientTicket().Expires) {
			t.Errorf("first %d of %d bytes decode as a whole ticket", n, len(base))
		}
	}
}

func TestSealRefusesWhatNoRelayOpens(t *testing.T) {
	cases := map[string]func(*ticket.Ticket){
		"no role":        func(k *ticket.Ticket) { k.Role = 0 },
		"unknown role":   func(k *ticket.Ticket) { k.Role = 9 },
		"no handle":      func(k *ticket.Ticket) { k.Handle = 0 },
		"large handle":   func(k *ticket.Ticket) { k.Handle = 1 << 56 },
		"no connector":   func(k *ticket.Ticket) { k.Connector = 0 },
		"calls itself":   func(k *ticket.Ticket) { k.Connector = k.Handle },
		"no key":         func(k *ticket.Ticket) { k.MACKey = ticket.MACKey{} },
		"ends first":     func(k *ticket.Ticket) { k.Expires = k.NotBefore },
		"too long":       func(k *ticket.Ticket) { k.Expires = k.NotBefore.Add(ticket.MaxLife + time.Second) },
		"connector role": func(k *ticket.Ticket) { k.Role = ticket.RoleConnector },
	}
	for name, edit := range cases {
		tk := clientTicket()
		edit(&tk)
		if _, err := ticket.Seal(relayKey(t).Public(), signer(), tk); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	key := relayKey(t)
	tk := clientTicket()
	js, err := json.Marshal(map[string]any{"ticket": tk, "key": key})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %s %v %#v %s", tk, tk, tk, js, key, key, tk.MACKey.LogValue())
	for _, secret := range [][]byte{tk.MACKey[:], raw} {
		for _, form := range []string{hex.EncodeToString(secret), string(secret), fmt.Sprint(secret), strings.Trim(fmt.Sprint(secret), "[]")} {
			if strings.Contains(out, form) {
				t.Errorf("a secret shows in %q", out)
			}
		}
	}
}

func TestHandles(t *testing.T) {
	seen := map[ticket.Handle]bool{}
	for range 1000 {
		h := ticket.NewHandle()
		if !h.Valid() || seen[h] {
			t.Fatalf("NewHandle() = %s", h)
		}
		seen[h] = true
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(mustSeal(f, clientTicket()))
	f.Add([]byte{})
	f.Add(signer().Seal(seal.Ticket, []byte{1, 2, 3}))
	f.Add(outerWith(f, 9))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tk, err := open(t, b, inside()); err == nil && !cmp.Equal(tk, clientTicket()) {
			t.Errorf("a ticket that nobody sealed: %+v", tk)
		}
	})
}

func FuzzInner(f *testing.F) {
	f.Add(ticket.EncodeForTest(clientTicket()))
	f.Add([]byte{0x03, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		tk, err := ticket.DecodeForTest(b)
		if err != nil || tk.NotBefore.Unix() < 0 || tk.Expires.Unix() < 0 {
			return
		}
		again, err := ticket.DecodeForTest(ticket.EncodeForTest(tk))
		if err != nil || !cmp.Equal(tk, again) {
			t.Errorf("decode(encode(%+v)) = %+v, %v", tk, again, err)
		}
	})
}
