package ids_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/postern-zt/postern/proto/ids"
)

func TestNewParses(t *testing.T) {
	id := ids.New[ids.AppID]()
	if got, err := ids.Parse[ids.AppID](string(id)); err != nil || got != id {
		t.Fatalf("Parse(%q) = %q, %v", id, got, err)
	}
	if _, err := ids.Parse[ids.UserID](string(id)); !errors.Is(err, ids.ErrMalformed) {
		t.Errorf("an app id parsed as a user id: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(ids.New[ids.DeviceID]())
	for _, s := range []string{"", "dev_", good[:len(good)-1], good + "0", strings.ToUpper(good), good[:len(good)-1] + "u"} {
		if _, err := ids.Parse[ids.DeviceID](s); !errors.Is(err, ids.ErrMalformed) {
			t.Errorf("Parse(%q) = %v, want ErrMalformed", s, err)
		}
	}
}

func TestReceiptCheckCharacter(t *testing.T) {
	r := ids.NewReceipt()
	typed := strings.ToLower(strings.ReplaceAll(string(r), "-", ""))
	if got, err := ids.ParseReceipt(typed); err != nil || got != r {
		t.Fatalf("ParseReceipt(%q) = %q, %v, want %q", typed, got, err, r)
	}
	for i := range typed {
		for _, c := range "0123456789abcdefghjkmnpqrstvwxyz" {
			if byte(c) == typed[i] {
				continue
			}
			wrong := typed[:i] + string(c) + typed[i+1:]
			if _, err := ids.ParseReceipt(wrong); err == nil {
				t.Errorf("ParseReceipt(%q) accepted one wrong character of %q", wrong, typed)
			}
		}
	}
}

func TestKeyIDRoundTrip(t *testing.T) {
	k := ids.KeyIDOf([]byte("spki"))
	if got, err := ids.ParseKeyID(k.String()); err != nil || got != k {
		t.Fatalf("ParseKeyID(%q) = %v, %v", k, got, err)
	}
	if _, err := ids.ParseKeyID("00"); !errors.Is(err, ids.ErrMalformed) {
		t.Errorf("short key id: %v", err)
	}
}

func FuzzParseReceipt(f *testing.F) {
	f.Add("K7M2-Q4TX")
	f.Add("k7m2q4tx")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ids.ParseReceipt(s)
		if err != nil {
			return
		}
		if again, err := ids.ParseReceipt(string(r)); err != nil || again != r {
			t.Errorf("ParseReceipt(%q) is not stable: %q, %v", s, again, err)
		}
	})
}
