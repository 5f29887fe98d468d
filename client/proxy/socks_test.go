package proxy

import (
	"bytes"
	"io"
	"net/netip"
	"testing"
)

// pipe is what a program says; what it is answered is not looked at.
type pipe struct{ io.Reader }

func (pipe) Write(p []byte) (int, error) { return len(p), nil }

func TestGreetRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"empty":             "",
		"SOCKS 4":           "\x04\x01\x00\x50\x0a\x00\x00\x01\x00",
		"password only":     "\x05\x01\x02",
		"HTTP":              "GET / HTTP/1.1\r\n\r\n",
		"unknown address":   "\x05\x01\x00\x05\x01\x00\x09\x00\x50",
		"empty name":        "\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50",
		"control in name":   "\x05\x01\x00\x05\x01\x00\x03\x03a\nb\x00\x50",
		"cut in the port":   "\x05\x01\x00\x05\x01\x00\x03\x01a\x00",
		"request of SOCKS4": "\x05\x01\x00\x04\x01\x00\x03\x01a\x00\x50",
	} {
		if req, err := greet(pipe{bytes.NewReader([]byte(in))}); err == nil {
			t.Errorf("%s: accepted as %+v", name, req)
		}
	}
}

func TestGreetReadsNoByteTooMany(t *testing.T) {
	r := bytes.NewReader([]byte("\x05\x02\x02\x00\x05\x01\x00\x03\x04wiki\x00\x50early"))
	req, err := greet(pipe{r})
	if err != nil || req.host != "wiki" || req.port != 80 || req.command != commandConnect {
		t.Fatalf("greet = %+v, %v", req, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "early" {
		t.Errorf("left %q", rest)
	}
}

func FuzzGreet(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x04wiki\x00\x50"))
	f.Add([]byte("\x05\x01\x00\x05\x03\x00\x01\x0a\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := greet(pipe{bytes.NewReader(in)})
		if err == nil && (req.host == "") == !req.addr.IsValid() {
			t.Errorf("%q gives neither or both of name and address: %+v", in, req)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add(append(appendAddress([]byte{0, 0, 0}, netip.MustParseAddrPort("10.0.0.1:53")), "query"...))
	f.Add([]byte("\x00\x00\x00\x03\x02ns\x00\x35query"))
	f.Add([]byte("\x00\x00\x01\x03\x02ns\x00\x35fragment"))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, payload, err := parseDatagram(in)
		if err == nil && !bytes.HasSuffix(in, payload) {
			t.Errorf("%q: payload %q", in, payload)
		}
	})
}
