package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/connector/enroll"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/control/v1/controlv1connect"
)

// proposeTimeout bounds the question to the broker; without an answer the connector serves
// what it is assigned.
const proposeTimeout = 10 * time.Second

// parsePublish reads NAME=HOST:PORT, NAME=HOST:FIRST-LAST or NAME=PUBLISHED=HOST:PORT, each
// with /udp, /tcp or /tcp+udp if need be.
func parsePublish(list []string) ([]*controlv1.PublishRequest, error) {
	var out []*controlv1.PublishRequest
	for _, s := range list {
		name, target, _ := strings.Cut(s, "=")
		if name == "" || !isTarget(target) {
			return nil, fmt.Errorf("--publish %s: want NAME=HOST:PORT, such as wiki=10.0.0.5:80", s)
		}
		out = append(out, &controlv1.PublishRequest{Name: name, Targets: []string{target}})
	}
	return out, nil
}

// isTarget checks what can be checked without the broker, before a token is spent.
func isTarget(s string) bool {
	for _, suffix := range []string{"/udp", "/tcp+udp", "/tcp"} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s = rest
			break
		}
	}
	published, rest, given := strings.Cut(s, "=")
	if !given {
		rest = s
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil || host == "" || strings.ContainsAny(host, "/= \t") {
		return false
	}
	n := portCount(port)
	return n > 0 && (!given || portCount(published) == n)
}

// portCount is how many ports "80" or "8000-8010" has, 0 when it is neither.
func portCount(s string) int {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || b < a {
		return 0
	}
	return int(b-a) + 1
}

// propose asks for the apps of a connector that has joined before. A broker that does not
// answer keeps nothing from being served.
func propose(e *env, store *enroll.Store, m enroll.Membership, publish []*controlv1.PublishRequest) {
	if len(publish) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(e.ctx, proposeTimeout)
	defer cancel()
	err := withBroker(e, store, m, func(c controlv1connect.ConnectorServiceClient) error {
		resp, err := c.Propose(ctx, connect.NewRequest(&controlv1.ProposeRequest{Publish: publish}))
		if err == nil {
			e.tellPublished(resp.Msg.Results)
		}
		return err
	})
	if err != nil {
		fmt.Fprintln(e.out, "Not published, the broker was not asked:", explain(err))
	}
}

func (e *env) tellPublished(results []*controlv1.PublishResult) {
	for _, p := range results {
		fmt.Fprintln(e.out, publishLine(p))
	}
}

func publishLine(p *controlv1.PublishResult) string {
	switch p.State {
	case "published":
		return "Published " + p.Name + "."
	case "unchanged":
		return "Published " + p.Name + " already."
	case "proposed":
		return "Proposed " + p.Name + ": an administrator has to approve it."
	default:
		return "Not published " + p.Name + ": " + p.Message
	}
}
