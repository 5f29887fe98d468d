package catalog

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
)

// Protocol is what an app speaks. The zero value is completed to TCP.
type Protocol string

// The protocols.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	Both Protocol = "both"
)

// Networks returns the networks of the wire formats; none for an unknown protocol.
func (p Protocol) Networks() []grant.Network {
	switch p {
	case TCP:
		return []grant.Network{grant.TCP}
	case UDP:
		return []grant.Network{grant.UDP}
	case Both:
		return []grant.Network{grant.TCP, grant.UDP}
	default:
		return nil
	}
}

// Class says how much an app is worth protecting. The zero value is completed to internal.
type Class string

// The classes.
const (
	Public       Class = "public"
	Internal     Class = "internal"
	Confidential Class = "confidential"
	Restricted   Class = "restricted"
)

// DefaultOutage is what happens to open flows of an app of this class when the connector
// has no fresh statement; an unknown class cuts.
func (c Class) DefaultOutage() Outage {
	switch c {
	case Public:
		return Outage{Mode: grant.OutageContinue, Grace: Duration(60 * time.Minute)}
	case Internal:
		return Outage{Mode: grant.OutageContinue, Grace: Duration(15 * time.Minute)}
	case Confidential:
		return Outage{Mode: grant.OutageHold, Grace: Duration(10 * time.Minute)}
	default:
		return Outage{Mode: grant.OutageCut}
	}
}

// Visibility says who sees that the app exists. The zero value is completed to everyone.
type Visibility string

// The visibilities (decisions rule 24).
const (
	Everyone Visibility = "everyone"
	Allowed  Visibility = "allowed"
	Hidden   Visibility = "hidden"
)

// Kind is the kind of publication. The zero value is completed to app; the others are
// refused in this release.
type Kind string

// The kinds.
const (
	KindApp      Kind = "app"
	KindNetwork  Kind = "network"
	KindLearning Kind = "learning"
)

// Duration is a time.Duration that is written as text ("15m0s") in JSON.
type Duration time.Duration

// MarshalText writes the duration as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Outage is what happens to open flows without a fresh statement (decisions rule 8).
type Outage struct {
	Mode  grant.OutageMode `json:"mode,omitempty"`
	Grace Duration         `json:"grace,omitempty"`
}

// Owner is who answers for an app: a user, or a text such as a team's name, or both.
type Owner struct {
	User ids.UserID `json:"user,omitempty"`
	Text string     `json:"text,omitempty"`
}

// Limits bound one device's use of an app; zero means no limit of its own.
type Limits struct {
	Flows            uint32 `json:"flows,omitempty"`
	OpensPerMinute   uint32 `json:"opens_per_minute,omitempty"`
	DenialsPerMinute uint32 `json:"denials_per_minute,omitempty"`
	BytesPerSecond   uint64 `json:"bytes_per_second,omitempty"`
}

// Placement is an app at one site: where connectors of the site dial, in order.
type Placement struct {
	Site    ids.SiteID `json:"site"`
	Targets []Target   `json:"targets"`
}

// App is one published private application. Values in a Snapshot are complete and valid.
type App struct {
	ID ids.AppID `json:"id"`
	// Index is the app's small stable number, from 1, for address mapping (rule 22).
	Index uint32 `json:"index"`
	// Version counts edits, from 1; an edit names the version that it started from.
	Version uint64 `json:"version"`
	// Name is a DNS label; the app is reached as name.suffix under the first suffix.
	Name string `json:"name"`
	// ExtraNames are further full names, below declared suffixes.
	ExtraNames []string `json:"extra_names,omitempty"`
	Kind       Kind     `json:"kind"`
	Protocol   Protocol `json:"protocol"`
	// Ports are the published ports; empty is completed from the targets.
	Ports      []PortRange `json:"ports"`
	Class      Class       `json:"class"`
	Owner      Owner       `json:"owner,omitzero"`
	Tags       []string    `json:"tags,omitempty"`
	Visibility Visibility  `json:"visibility"`
	// Placements are tried in order.
	Placements []Placement `json:"placements"`
	Limits     Limits      `json:"limits,omitzero"`
	// Outage overrides the default of the class; a zero mode does not.
	Outage Outage `json:"outage,omitzero"`
	// Retired apps are kept with their name and index but are offered to nobody.
	Retired   bool      `json:"retired,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// OutageMode returns the app's own outage rule or its class's.
func (a *App) OutageMode() Outage {
	if a.Outage.Mode != 0 {
		return a.Outage
	}
	return a.Class.DefaultOutage()
}

// Names returns the full names of the app, the first being its main name. Without a
// declared suffix the label stands alone.
func (a *App) Names(suffixes []string) []string {
	main := a.Name
	if len(suffixes) > 0 {
		main += "." + suffixes[0]
	}
	return append([]string{main}, a.ExtraNames...)
}

// At returns the targets at a site, none where the app is not placed.
func (a *App) At(site ids.SiteID) []Target {
	for _, p := range a.Placements {
		if p.Site == site {
			return p.Targets
		}
	}
	return nil
}

// GrantPorts returns the published ports as they enter a grant.
func (a *App) GrantPorts() []grant.Ports {
	var out []grant.Ports
	for _, n := range a.Protocol.Networks() {
		for _, r := range a.Ports {
			out = append(out, grant.Ports{Network: n, First: r.First, Last: r.Last})
		}
	}
	return out
}

// Targets returns the app's targets at a site as they enter an assignment.
func (a *App) Targets(site ids.SiteID) []grant.Target {
	var out []grant.Target
	for _, t := range a.At(site) {
		for _, n := range a.Protocol.Networks() {
			out = append(out, grant.Target{
				Ports: grant.Ports{Network: n, First: t.Published.First, Last: t.Published.Last},
				Host:  t.Host, Base: t.Port,
			})
		}
	}
	return out
}

// Complete fills the defaults, lowers the case of names and puts lists in order.
func (a *App) Complete() {
	a.Name = lowerName(a.Name)
	a.ExtraNames = cleanList(a.ExtraNames, lowerName)
	a.Tags = cleanList(a.Tags, func(s string) string { return strings.ToLower(strings.TrimSpace(s)) })
	a.Kind = or(a.Kind, KindApp)
	a.Protocol = or(a.Protocol, TCP)
	a.Class = or(a.Class, Internal)
	a.Visibility = or(a.Visibility, Everyone)
	a.completePorts()
}

// completePorts takes missing published ports from the targets, and lets a target without
// published ports serve the app's only port or its own numbers.
func (a *App) completePorts() {
	for i := range a.Placements {
		for j := range a.Placements[i].Targets {
			a.Placements[i].Targets[j].complete(a.Ports)
		}
	}
	if len(a.Ports) == 0 {
		for _, p := range a.Placements {
			for _, t := range p.Targets {
				a.Ports = append(a.Ports, t.Published)
			}
		}
	}
	a.Ports = mergePorts(a.Ports)
}

func or[T comparable](v, standard T) T {
	var zero T
	if v == zero {
		return standard
	}
	return v
}

func lowerName(s string) string {
	return strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), ".")
}

// cleanList maps, sorts and removes doubles; it returns nil for an empty list.
func cleanList(list []string, clean func(string) string) []string {
	var out []string
	for _, s := range list {
		out = append(out, clean(s))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// String returns name and id for logs and errors.
func (a *App) String() string { return fmt.Sprintf("%s (%s)", a.Name, a.ID) }
