package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/netstack/link"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/frame"
)

var noon = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

// withCatalog is a client that sees wiki with port 80.
func withCatalog() *Client {
	app := &controlv1.CatalogApp{
		Id: "app_wiki", Name: "wiki", Fqdns: []string{"wiki.corp.internal"}, Allowed: true,
		Ports: []*controlv1.PortRange{{Network: "tcp", First: 80, Last: 80}, {Network: "udp", First: 53, Last: 55}},
	}
	return &Client{view: view{catalog: &controlv1.Catalog{Apps: []*controlv1.CatalogApp{app}}}}
}

func TestEveryFailureIsExplained(t *testing.T) {
	for err, want := range map[error]string{
		frame.Refused.Err():                    "you may use it, but the app refused",
		frame.Timeout.Err():                    "you may use it, but the app did not answer",
		frame.Unreachable.Err():                "cannot reach its address",
		frame.NameNotFound.Err():               "cannot resolve its name",
		tunnels.ErrNoConnector:                 "none of its connectors",
		tunnels.ErrUnknownApp:                  "no app with this name",
		fmt.Errorf("x: %w", link.ErrNoCarrier): "none of its connectors",
		tunnels.ErrBroker:                      "broker cannot be reached.",
		errors.New("odd"):                      "odd.",
	} {
		f := failure{app: "wiki", at: noon, err: err}
		got := f.explain(noon.Add(10 * time.Second))
		if !strings.HasPrefix(got, "wiki, 10 s ago: ") || !strings.Contains(got, want) {
			t.Errorf("%v: %q lacks %q", err, got, want)
		}
	}
}

func TestUnpublishedPortNamesThePortsThereAre(t *testing.T) {
	c := withCatalog()
	err := c.failed("WIKI.corp.internal", "tcp", 81, frame.PortNotGranted.Err())
	if got, want := Sentence(err), "wiki has no port 81 (it has 80, udp/53-55)."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if frame.CodeOf(err) != frame.PortNotGranted {
		t.Error("the refusal's code is lost")
	}
	if f, ok := c.failures.newest("wiki"); !ok || f.what() != Sentence(err) {
		t.Errorf("kept: %+v", f)
	}
}

func TestNewestFailureOfEachName(t *testing.T) {
	var f failures
	f.note("wiki", frame.Refused.Err(), noon)
	f.note("dead", tunnels.ErrNoConnector, noon.Add(time.Second))
	f.note("git", context.Canceled, noon.Add(2*time.Second))
	if got, _ := f.newest(""); got.app != "dead" {
		t.Errorf("newest %+v", got)
	}
	if got, ok := f.newest("wiki"); !ok || frame.CodeOf(got.err) != frame.Refused {
		t.Errorf("wiki %+v", got)
	}
	if _, ok := f.newest("git"); ok {
		t.Error("an open that its caller ended is no failure")
	}
	for i := range 2 * maxFailures {
		f.note(fmt.Sprint(i), tunnels.ErrUnknownApp, noon)
	}
	if len(f.list) != maxFailures {
		t.Errorf("%d are kept", len(f.list))
	}
	f.forget()
	if _, ok := f.newest(""); ok {
		t.Error("the next user sees them")
	}
}

func TestDenialIsKeptWithItsReceipt(t *testing.T) {
	c := withCatalog()
	c.denied("wiki", &controlv1.Receipt{Id: "K7M2-Q4TX"})
	f, _ := c.failures.newest("")
	var d *tunnels.DeniedError
	if !errors.As(f.err, &d) || d.Receipt.Id != "K7M2-Q4TX" || f.app != "wiki" {
		t.Errorf("%+v", f)
	}
}
