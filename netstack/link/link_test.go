package link_test

import (
	"errors"
	"io"
	"testing"

	"github.com/postern-zt/postern/netstack/link"
	"github.com/postern-zt/postern/proto/frame"
)

func TestOpenEcho(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	c := w.client(newCredentials(t), nil, &road{name: "a"})
	if err := c.Present(t.Context(), envelope("gnt_a", 80), 1); err != nil {
		t.Fatal(err)
	}
	f, err := c.OpenTCP(t.Context(), 1, 80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = f.CloseWrite()
	got, err := io.ReadAll(f)
	if err != nil || string(got) != "hello" {
		t.Fatalf("echo = %q, %v", got, err)
	}
	f.Wait()
	rec := w.handler.awaitClosed(t, 1)[0]
	if rec.Cause != frame.OK || rec.ToApp != 5 || rec.FromApp != 5 {
		t.Errorf("record = cause %v, %d to app, %d from app", rec.Cause, rec.ToApp, rec.FromApp)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, link.Limits{})
	w.handler.app(80, echo)
	c := w.client(newCredentials(t), nil, &road{name: "a"})
	if err := c.Present(t.Context(), []byte("nonsense"), 9); !errors.Is(err, frame.GrantInvalid.Err()) {
		t.Errorf("Present(nonsense) = %v, want grant_invalid", err)
	}
	if err := c.Present(t.Context(), envelope("gnt_a", 80), 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Present(t.Context(), envelope("gnt_b", 81), 2); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		ref  link.GrantRef
		port uint16
		want frame.Code
	}{
		{1, 80, frame.OK},
		{1, 81, frame.PortNotGranted},
		{2, 81, frame.Refused},
		{3, 80, frame.GrantUnknown},
		{9, 80, frame.GrantUnknown},
	} {
		f, err := c.OpenTCP(t.Context(), tt.ref, tt.port)
		if frame.CodeOf(err) != tt.want {
			t.Errorf("OpenTCP(%d, %d) = %v, want %v", tt.ref, tt.port, err, tt.want)
		}
		if f != nil {
			_ = f.Close()
		}
	}
}
