package grants

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
)

// Assigned is the signed assignment of one connector.
type Assigned struct {
	Version  uint64
	Apps     int
	Envelope []byte
}

// Assignment signs what a connector may dial: the targets of its own site and of no other.
// The version goes up when, and only when, the content changes. A connector that is not
// active gets nothing.
func (l *Ledger) Assignment(ctx context.Context, c registry.Connector, snap *catalog.Snapshot) (Assigned, error) {
	if err := c.Usable(); err != nil {
		return Assigned{}, err
	}
	a := assignmentOf(c, snap)
	sealed := grant.SealAssignment(l.cfg.Signer, &a)
	digest := sha256.Sum256(contentOf(sealed))
	version, err := l.cfg.Store.SaveAssignment(ctx, c.ID, digest[:])
	if err != nil {
		return Assigned{}, fmt.Errorf("version assignment: %w", err)
	}
	a.Version = version
	sealed = grant.SealAssignment(l.cfg.Signer, &a)
	if len(sealed) > seal.MaxEnvelope-assignmentSlack {
		return Assigned{}, fmt.Errorf("%w: %d apps take %d bytes", ErrTooLarge, len(a.Apps), len(sealed))
	}
	return Assigned{Version: version, Apps: len(a.Apps), Envelope: sealed}, nil
}

// assignmentSlack is what the header of an envelope takes from its largest size.
const assignmentSlack = 1 + 8 + 64

// contentOf returns the payload of an envelope, without the signature and the key: another
// signing key is no other content.
func contentOf(envelope []byte) []byte { return envelope[assignmentSlack:] }

// assignmentOf builds the assignment with version 0. Gateway stays off: the browser door and
// plain WireGuard clients are not in this release (decisions rule 11).
func assignmentOf(c registry.Connector, snap *catalog.Snapshot) grant.Assignment {
	a := grant.Assignment{Connector: c.ID, Site: c.Site, Networks: privateNetworks()}
	for _, app := range snap.AtSite(c.Site) {
		a.Apps = append(a.Apps, grant.App{ID: app.ID, Name: app.Name, Targets: app.Targets(c.Site)})
	}
	return a
}

// privateNetworks is where the names of targets may resolve to: private addresses only, so
// that a rebound name leads neither to the internet nor to the connector's own host. A
// target elsewhere is published by its address.
func privateNetworks() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"),
	}
}

// Candidates returns the connectors that can serve an app, in the order of its placements:
// what a grant names. Only active connectors of its sites are among them.
func Candidates(app *catalog.App, all []registry.Connector) []ids.ConnectorID {
	var out []ids.ConnectorID
	for _, p := range app.Placements {
		for _, c := range all {
			if c.Site == p.Site && c.Usable() == nil && !slices.Contains(out, c.ID) {
				out = append(out, c.ID)
			}
		}
	}
	return out
}
