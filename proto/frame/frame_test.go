package frame_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/proto/frame"
	"github.com/postern-zt/postern/proto/tlv"
)

var instance = frame.InstanceID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// message is one frame with the value that it must parse to.
type message struct {
	name  string
	bytes []byte
	want  any
}

func messages() []message {
	hello := frame.Hello{Min: 1, Max: 1, Features: frame.AllFeatures, Instance: instance, Kind: frame.KindDevice, Endorsement: []byte{0xee}}
	open := frame.Open{Flow: 7, Ref: 2, Epoch: 1, Network: frame.TCP, Port: 5432, Window: 262144}
	host := frame.Open{Flow: 8, Ref: 2, Epoch: 1, Network: frame.UDP, Port: 53, Window: 0, Host: "ns.corp.internal"}
	opened := frame.Opened{Flow: 7, Code: frame.Refused, ConnectMicros: 1234, Window: 65536, Message: "The app refused the connection."}
	attach := frame.Attach{Flow: 7, Ref: 2, Epoch: 3, State: frame.Ack{Received: 1 << 40, Drained: 1<<40 - 1, Window: 4 << 20, Fin: true}}
	attached := attach
	attached.Code = frame.Closed
	ack := frame.Ack{Received: 1000, Drained: 900, Window: 65536}
	return []message{
		{"hello", frame.AppendHello(nil, hello), hello},
		{"present", frame.AppendPresent(nil, 2, []byte("envelope")), nil},
		{"presented", frame.AppendPresented(nil, frame.Presented{Ref: 2, Code: frame.GrantExpired, Message: "late"}), frame.Presented{Ref: 2, Code: frame.GrantExpired, Message: "late"}},
		{"withdraw", frame.AppendWithdraw(nil, 2, frame.Revoked), nil},
		{"open", frame.AppendOpen(nil, open), open},
		{"open-host", frame.AppendOpen(nil, host), host},
		{"opened", frame.AppendOpened(nil, opened), opened},
		{"attach", frame.AppendAttach(nil, attach), attach},
		{"attached", frame.AppendAttached(nil, attached), attached},
		{"ack", frame.AppendAck(nil, ack), ack},
		{"fin", frame.AppendFin(nil, 1000), nil},
		{"rst", frame.AppendRst(nil, 7, frame.Reset), nil},
		{"ping", frame.AppendPing(nil, 5), nil},
		{"pong", frame.AppendPong(nil, 5), nil},
		{"drain", frame.AppendDrain(nil), nil},
	}
}

// parse reads the payload by its type; nil for a type whose header says everything.
func parse(b []byte) (any, error) {
	h, err := frame.ParseHeader(b)
	if err != nil {
		return nil, err
	}
	p := b[frame.HeaderLen:]
	if uint32(len(p)) < h.Length {
		return nil, frame.ErrTruncated
	}
	p = p[:h.Length]
	switch h.Type {
	case frame.TypeHello:
		return frame.ParseHello(p)
	case frame.TypePresented:
		return frame.ParsePresented(h, p)
	case frame.TypeOpen:
		return frame.ParseOpen(h, p)
	case frame.TypeOpened:
		return frame.ParseOpened(h, p)
	case frame.TypeAttach, frame.TypeAttached:
		return frame.ParseAttach(h, p)
	case frame.TypeAck:
		return frame.ParseAck(h, p)
	default:
		return nil, nil
	}
}

func TestRoundTrip(t *testing.T) {
	for _, m := range messages() {
		got, err := parse(m.bytes)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if diff := cmp.Diff(m.want, got); diff != "" {
			t.Errorf("%s: %s", m.name, diff)
		}
	}
}

func TestTruncation(t *testing.T) {
	for _, m := range messages() {
		for i := range len(m.bytes) {
			if _, err := parse(m.bytes[:i]); err == nil {
				t.Errorf("%s parsed from %d of %d bytes", m.name, i, len(m.bytes))
			}
		}
	}
}

// TestKnownAnswers compares every frame with the bytes on file: the wire does not change.
func TestKnownAnswers(t *testing.T) {
	got := make(map[string]string)
	for _, m := range messages() {
		got[m.name] = hex.EncodeToString(m.bytes)
	}
	if diff := cmp.Diff(readHex(t, "testdata/known.txt"), got); diff != "" {
		t.Errorf("frames differ from testdata/known.txt: %s", diff)
	}
}

// TestOldestMessages reads what the first release wrote. Lines are never changed.
func TestOldestMessages(t *testing.T) {
	want := make(map[string]any)
	for _, m := range messages() {
		want[m.name] = m.want
	}
	for name, text := range readHex(t, "testdata/oldest.txt") {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(b)
		if err != nil {
			t.Errorf("%s of the first release: %v", name, err)
		}
		if diff := cmp.Diff(want[name], got); diff != "" {
			t.Errorf("%s of the first release: %s", name, diff)
		}
	}
}

// readHex reads lines of "name hex".
func readHex(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := make(map[string]string)
	s := bufio.NewScanner(f)
	for s.Scan() {
		if name, text, ok := strings.Cut(s.Text(), " "); ok && !strings.HasPrefix(name, "#") {
			out[name] = text
		}
	}
	return out
}

func header(h frame.Header) []byte {
	b := make([]byte, frame.HeaderLen)
	frame.PutHeader(b, h)
	return b
}

func TestHeaderRefuses(t *testing.T) {
	for _, tt := range []struct {
		h    frame.Header
		want error
	}{
		{frame.Header{Type: frame.TypeData, Length: frame.MaxData}, nil},
		{frame.Header{Type: frame.TypeData, Length: frame.MaxData + 1}, frame.ErrTooLarge},
		{frame.Header{Type: frame.TypeOpen, Length: frame.MaxSmall + 1}, frame.ErrTooLarge},
		{frame.Header{Type: frame.TypePresent, Length: 1 << 20}, frame.ErrTooLarge},
		{frame.Header{Type: 0}, frame.ErrType},
		{frame.Header{Type: 99}, frame.ErrType},
		{frame.Header{Type: 99, Flags: frame.Optional}, nil},
		{frame.Header{Type: 99, Flags: frame.Optional, Length: frame.MaxSmall + 1}, frame.ErrTooLarge},
	} {
		if _, err := frame.ParseHeader(header(tt.h)); !errors.Is(err, tt.want) {
			t.Errorf("ParseHeader(%+v) = %v, want %v", tt.h, err, tt.want)
		}
	}
}

func TestHelloRefuses(t *testing.T) {
	good := frame.NewHello(instance, frame.KindDevice)
	for name, edit := range map[string]func(*frame.Hello){
		"no kind":      func(h *frame.Hello) { h.Kind = 0 },
		"unknown kind": func(h *frame.Hello) { h.Kind = 9 },
		"no version":   func(h *frame.Hello) { h.Min = 0 },
		"min over max": func(h *frame.Hello) { h.Min = 2 },
		"no instance":  func(h *frame.Hello) { h.Instance = frame.InstanceID{} },
	} {
		h := good
		edit(&h)
		if _, err := frame.ParseHello(frame.AppendHello(nil, h)[frame.HeaderLen:]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for critical, want := range map[bool]error{true: tlv.ErrUnknownCritical, false: nil} {
		payload := frame.AppendHello(nil, good)[frame.HeaderLen:]
		var w tlv.Writer
		w.Put(77, critical, []byte("new"))
		if _, err := frame.ParseHello(append(payload, w.Bytes()...)); !errors.Is(err, want) {
			t.Errorf("unknown field, critical %v: %v, want %v", critical, err, want)
		}
	}
}

func TestAgree(t *testing.T) {
	a, b := frame.NewHello(instance, frame.KindDevice), frame.NewHello(instance, frame.KindConnector)
	b.Max, b.Features = 7, frame.FeatureUDP
	if v, f, err := frame.Agree(a, b); v != 1 || f != frame.FeatureUDP || err != nil {
		t.Errorf("Agree = %d, %b, %v", v, f, err)
	}
	b.Min = 2
	if _, _, err := frame.Agree(a, b); !errors.Is(err, frame.ErrVersion) {
		t.Errorf("Agree without a common version = %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := frame.Open{Flow: 1, Ref: 1, Epoch: 1, Network: frame.TCP, Port: 80}
	for name, edit := range map[string]func(*frame.Open){
		"no network":      func(o *frame.Open) { o.Network = 0 },
		"unknown network": func(o *frame.Open) { o.Network = 3 },
		"no port":         func(o *frame.Open) { o.Port = 0 },
		"long host":       func(o *frame.Open) { o.Host = strings.Repeat("a", frame.MaxHost+1) },
	} {
		o := good
		edit(&o)
		if _, err := parse(frame.AppendOpen(nil, o)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMessagesAreCut(t *testing.T) {
	long := strings.Repeat("ä", frame.MaxMessage)
	got, err := parse(frame.AppendOpened(nil, frame.Opened{Code: frame.Denied, Message: long}))
	if err != nil {
		t.Fatal(err)
	}
	if m := got.(frame.Opened).Message; len(m) > frame.MaxMessage || !strings.HasPrefix(long, m) || m == "" {
		t.Errorf("message of %d bytes", len(m))
	}
}

func TestFragment(t *testing.T) {
	b := append(make([]byte, frame.FragmentLen), "piece"...)
	want := frame.Fragment{Flow: 1 << 60, Datagram: 9, Index: 63, Total: 64}
	frame.PutFragment(b, want)
	got, piece, err := frame.ParseFragment(b)
	if err != nil || got != want || string(piece) != "piece" {
		t.Errorf("ParseFragment = %+v %q %v", got, piece, err)
	}
	for _, bad := range []frame.Fragment{{}, {Index: 1, Total: 1}, {Total: 65}} {
		frame.PutFragment(b, bad)
		if _, _, err := frame.ParseFragment(b); err == nil {
			t.Errorf("piece %d of %d was accepted", bad.Index, bad.Total)
		}
	}
	if _, _, err := frame.ParseFragment(b[:frame.FragmentLen-1]); !errors.Is(err, frame.ErrTruncated) {
		t.Errorf("short fragment: %v", err)
	}
}

// TestCodes: every code of the registry has its own name and a sentence.
func TestCodes(t *testing.T) {
	seen := make(map[string]frame.Code)
	for c := range frame.Code(100) {
		if strings.HasPrefix(c.String(), "code_") {
			continue
		}
		if old, twice := seen[c.String()]; twice {
			t.Errorf("codes %d and %d are both %s", old, c, c)
		}
		seen[c.String()] = c
		if !strings.HasSuffix(c.Sentence(), ".") {
			t.Errorf("%s: sentence %q", c, c.Sentence())
		}
	}
	if len(seen) != 36 {
		t.Errorf("%d codes have a name", len(seen))
	}
	if frame.CodeOf(fmt.Errorf("open: %w", frame.Denied.Err())) != frame.Denied || frame.CodeOf(errors.New("x")) != frame.Internal || frame.CodeOf(nil) != frame.OK {
		t.Error("CodeOf does not find the code")
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range messages() {
		f.Add(m.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parse(b)
		if err != nil {
			return
		}
		if h, ok := got.(frame.Hello); ok {
			again, err := parse(frame.AppendHello(nil, h))
			if err != nil || !cmp.Equal(again, got) {
				t.Errorf("hello %+v does not survive: %v", h, err)
			}
		}
		if o, ok := got.(frame.Open); ok {
			again, err := parse(frame.AppendOpen(nil, o))
			if err != nil || !cmp.Equal(again, got) {
				t.Errorf("open %+v does not survive: %v", o, err)
			}
		}
	})
}

func FuzzFragment(f *testing.F) {
	f.Add(bytes.Repeat([]byte{1}, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, piece, err := frame.ParseFragment(b)
		if err == nil && (fr.Index >= fr.Total || len(piece) != len(b)-frame.FragmentLen) {
			t.Errorf("accepted %+v", fr)
		}
	})
}
