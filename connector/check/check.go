// Package check finds out what keeps a machine from serving as a connector: one step after
// the other, up to the first that fails, with exactly one fix. `postern-connector check`
// uses it, before a join, beside a running connector, and instead of one.
//
// It only looks: it redeems no token, changes no file, and dials nothing but the broker,
// its relays, a proxy and the assigned targets. A step that cannot know says so and never
// "ok". Run is for one goroutine.
package check

import (
	"context"
	"time"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/ids"
)

// stepTimeout bounds each step.
const stepTimeout = 10 * time.Second

// State is how a step ended.
type State string

// The states. Only Fail stops the check.
const (
	OK   State = "ok"
	Warn State = "warn"
	Fail State = "fail"
)

// Result is one step.
type Result struct {
	Step  string `json:"step"`
	State State  `json:"state"`
	Text  string `json:"text"`
	// Fix is what to do, for Fail only.
	Fix string `json:"fix,omitempty"`
}

// Target is one address that the connector must reach.
type Target struct {
	App     string
	Network string
	Address string
}

// Relay is how one transport to a relay stands.
type Relay struct {
	ID        string
	Transport string
	Up        bool
	Problem   string
}

// Site is what the broker wants of this connector: from the connector that runs here, or
// heard by the check itself.
type Site struct {
	Relays  []Relay
	Targets []Target
}

// Config says what to check. Broker is required.
type Config struct {
	Broker control.Broker
	// Dialer opens TCP connections to broker and relays; nil means directly.
	Dialer control.Dialer
	// Proxy is the host:port of the proxy that the Dialer goes through for the broker;
	// empty is none.
	Proxy string
	// Member proves this machine's key; nil before the join.
	Member *control.Member
	// Connector is who we are, empty before the join.
	Connector ids.ConnectorID
	// Site gives what the broker wants of this connector; nil before the join.
	Site func(ctx context.Context) (Site, error)
	// Files is the limit on open files; zero when it is not known.
	Files uint64
	// Now is time.Now when nil.
	Now func() time.Time
}

// checker carries what one step learns to the next.
type checker struct {
	cfg  Config
	site Site
}

// step judges one thing.
type step struct {
	name string
	run  func(ctx context.Context) Result
}

// Run goes through the steps, tells each result, and returns whether none failed.
func Run(ctx context.Context, cfg Config, tell func(Result)) bool {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &checker{cfg: cfg}
	for _, s := range c.steps() {
		if !one(ctx, s, tell) {
			return false
		}
	}
	for _, s := range c.siteSteps() {
		if !one(ctx, s, tell) {
			return false
		}
	}
	return true
}

func one(ctx context.Context, s step, tell func(Result)) bool {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	r := s.run(ctx)
	r.Step = s.name
	tell(r)
	return r.State != Fail
}

func (c *checker) steps() []step {
	return []step{
		{"name", c.name},
		{"proxy", c.proxy},
		{"tcp", c.tcp},
		{"interception", c.interception},
		{"clock", c.clock},
		{"files", c.files},
		{"membership", c.membership},
	}
}

// siteSteps are known only once the broker has been heard.
func (c *checker) siteSteps() []step {
	if c.cfg.Site == nil {
		return []step{{"udp", func(context.Context) Result {
			return warn("not known before the join: a relay answers nobody without a ticket; without UDP everything goes over TCP")
		}}}
	}
	out := []step{{"relay tcp", c.relays("tcp")}, {"udp", c.relays("udp")}}
	for _, t := range c.site.Targets {
		out = append(out, step{"target", func(ctx context.Context) Result { return target(ctx, t) }})
	}
	return out
}

func ok(text string) Result   { return Result{State: OK, Text: text} }
func warn(text string) Result { return Result{State: Warn, Text: text} }
func fail(text, fix string) Result {
	return Result{State: Fail, Text: text, Fix: fix}
}
