package wire_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/postern-zt/postern/netstack/relay/wire"
	"github.com/postern-zt/postern/proto/ticket"
)

const handle = ticket.Handle(0x0102030405060a)

func key() ticket.MACKey { return ticket.MACKey(bytes.Repeat([]byte{1}, 32)) }

func cookie() [wire.CookieLen]byte {
	return [wire.CookieLen]byte(bytes.Repeat([]byte{0xcc}, wire.CookieLen))
}

// TestKnownBytes pins the layout of every datagram; the MACs were computed once with
// another implementation of HMAC-SHA256 (Python's).
func TestKnownBytes(t *testing.T) {
	c := cookie()
	cases := map[string]struct {
		got  []byte
		want string
	}{
		"bind":   {wire.AppendBind(nil, handle, 9, nil, []byte("TICKET"), key()), "110102030405060a" + "0000000000000009" + "0006" + hex.EncodeToString([]byte("TICKET")) + "e7d3e527dbeef97e3f1d334129b1b62c"},
		"prove":  {wire.AppendBind(nil, handle, 9, c[:], []byte("TICKET"), key()), "130102030405060a" + "0000000000000009" + strings.Repeat("cc", 24) + "0006" + hex.EncodeToString([]byte("TICKET")) + "e53f88e384f262d9ca21b8a3ba986ddd"},
		"cookie": {wire.AppendCookie(nil, handle, 9, c), "120102030405060a" + "0000000000000009" + strings.Repeat("cc", 24)},
		"bound":  {wire.AppendBound(nil, handle, 9, 60, key()), "140102030405060a" + "0000000000000009" + "0000003c" + "ca038b1f4a6e79ab4806436cd4ca22d2"},
		"ping":   {wire.AppendPing(nil, wire.TypePing, handle, 9, key()), "150102030405060a" + "0000000000000009" + "99e1100323a4f7ef591119bcc9fd6790"},
	}
	for name, tc := range cases {
		if got := hex.EncodeToString(tc.got); got != tc.want {
			t.Errorf("%s = %s, want %s", name, got, tc.want)
		}
	}
}

func TestBindRoundTrip(t *testing.T) {
	c := cookie()
	for _, ck := range [][]byte{nil, c[:]} {
		b := wire.AppendBind(nil, handle, 42, ck, []byte("sealed ticket"), key())
		m, err := wire.ParseBind(b)
		if err != nil || m.Handle != handle || m.Counter != 42 || !bytes.Equal(m.Cookie, ck) || string(m.Ticket) != "sealed ticket" {
			t.Fatalf("ParseBind = %+v, %v", m, err)
		}
		if !m.Proves(key()) || m.Proves(ticket.NewMACKey()) {
			t.Error("the proof does not depend on the key")
		}
		for i := range b {
			x := bytes.Clone(b)
			x[i] ^= 0x80
			if m, err := wire.ParseBind(x); err == nil && m.Proves(key()) {
				t.Errorf("bit in byte %d does not matter", i)
			}
			if m, err := wire.ParseBind(b[:i]); err == nil && m.Proves(key()) {
				t.Errorf("first %d bytes prove", i)
			}
		}
	}
}

func TestProvenMessagesAreNotInterchangeable(t *testing.T) {
	ping := wire.AppendPing(nil, wire.TypePing, handle, 3, key())
	if n, err := wire.ParseProven(ping, key()); err != nil || n != 3 {
		t.Fatalf("ParseProven(ping) = %d, %v", n, err)
	}
	ping[0] = byte(wire.TypePong)
	if _, err := wire.ParseProven(ping, key()); err == nil {
		t.Error("a ping turned into a pong holds")
	}
	for n := range ping {
		if _, err := wire.ParseProven(ping[:n], key()); err == nil {
			t.Errorf("first %d bytes hold", n)
		}
	}
}

func TestEqualRun(t *testing.T) {
	d := func(h ticket.Handle, payload string) string {
		b := make([]byte, wire.HeaderLen)
		wire.MakeHeader(wire.TypeData, h).Put(b)
		return string(b) + payload
	}
	cases := []struct {
		name string
		in   string
		seg  int
		want int
	}{
		{"one", d(1, "abc"), 11, 11},
		{"two equal", d(1, "abc") + d(1, "abc"), 11, 22},
		{"short tail", d(1, "abc") + d(1, "a"), 11, 20},
		{"change", d(1, "abc") + d(2, "abc") + d(1, "abc"), 11, 11},
		{"tail without a header", d(1, "abc") + "xyz", 11, 11},
		{"shorter than a header", "abc", 3, 3},
		{"control is alone", "\x11" + strings.Repeat("\x00", 15) + "\x11" + strings.Repeat("\x00", 15), 16, 16},
	}
	for _, tc := range cases {
		if got := wire.EqualRun([]byte(tc.in), tc.seg); got != tc.want {
			t.Errorf("%s: EqualRun = %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestTCPMessages(t *testing.T) {
	call := wire.CallID(bytes.Repeat([]byte{7}, wire.CallIDLen))
	kind, body, err := wire.ReadMessage(bytes.NewReader(wire.AppendCall(nil, handle, call)))
	if err != nil || kind != wire.KindCall {
		t.Fatalf("ReadMessage = %d, %v", kind, err)
	}
	if h, id, err := wire.ParseCall(body); h != handle || id != call || err != nil {
		t.Errorf("ParseCall = %s %x %v", h, id, err)
	}
	if _, _, err := wire.ReadMessage(bytes.NewReader([]byte{1, 0xff, 0xff})); err == nil {
		t.Error("a message beyond the limit was read")
	}
	if c := wire.ParseRefused([]byte{200}); c != wire.CodeInternal {
		t.Errorf("unknown code = %s", c)
	}
	if s := wire.Code(200).String(); s != "internal" {
		t.Errorf("unknown code prints %q", s)
	}
}

func FuzzParse(f *testing.F) {
	c := cookie()
	f.Add(wire.AppendBind(nil, handle, 1, nil, []byte("t"), key()))
	f.Add(wire.AppendBind(nil, handle, 1, c[:], []byte("t"), key()))
	f.Add(wire.AppendCookie(nil, handle, 1, c))
	f.Add(wire.AppendBound(nil, handle, 1, 1, key()))
	f.Add(wire.AppendPing(nil, wire.TypePing, handle, 1, key()))
	f.Add(wire.AppendCall(nil, handle, wire.CallID{}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := wire.ParseBind(b); err == nil {
			_ = m.Proves(key())
		}
		_, _, _ = wire.ParseCookie(b)
		_, _ = wire.ParseProven(b, key())
		_, _ = wire.ParseHello(b)
		_, _, _ = wire.ParseCall(b)
		_, _ = wire.ParseDecline(b)
		_ = wire.ParseRefused(b)
		_, _, _ = wire.ReadMessage(bytes.NewReader(b))
		for seg := 1; seg <= len(b) && seg < 40; seg++ {
			if n := wire.EqualRun(b, seg); n < 1 || n > len(b) {
				t.Fatalf("EqualRun(%d bytes, %d) = %d", len(b), seg, n)
			}
		}
	})
}
