package admincli

import (
	"context"
	"fmt"
	"io"
	"strings"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
)

type siteCmd struct {
	List   siteListCmd   `cmd:"" help:"List sites." example:"postern admin site list"`
	Add    siteAddCmd    `cmd:"" help:"Add a site." example:"postern admin site add hamburg"`
	Delete siteDeleteCmd `cmd:"" help:"Delete a site without apps and connectors." example:"postern admin site delete hamburg"`
}

type siteListCmd struct{}

// Run lists sites.
func (*siteListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.site.ListSites, &adminv1.ListSitesRequest{})
	if err != nil {
		return err
	}
	t := columns("SITE", "CONNECTORS", "APPS")
	for _, s := range all.Sites {
		t.add(s.Name, fmt.Sprint(s.Connectors), fmt.Sprint(s.Apps))
	}
	return c.print.table(all, "There are no sites yet; the first token or app makes one.", t)
}

type siteAddCmd struct {
	Name string `arg:"" help:"Name of the site."`
}

// Run adds a site.
func (a *siteAddCmd) Run(ctx context.Context, c *Conn) error {
	s, err := ask(ctx, c, c.site.CreateSite, &adminv1.CreateSiteRequest{Name: a.Name})
	if err != nil {
		return err
	}
	return c.print.show(s, func(w io.Writer) { fmt.Fprintf(w, "Added the site %s.\n", clean(s.Name)) })
}

type siteDeleteCmd struct {
	Site string `arg:"" help:"Name or id."`
}

// Run deletes a site.
func (d *siteDeleteCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.site.DeleteSite, &adminv1.SiteRef{Site: d.Site}, "Deleted the site "+d.Site+".")
}

type tokenCmd struct {
	List   tokenListCmd   `cmd:"" help:"List join tokens." example:"postern admin token list"`
	Add    tokenAddCmd    `cmd:"" help:"Make a join token; it is shown once." example:"postern admin token add --site hamburg --publish"`
	Revoke tokenRevokeCmd `cmd:"" help:"Make a token worthless; who joined by it stays." example:"postern admin token revoke tok_..."`
}

type tokenListCmd struct{}

// Run lists tokens.
func (*tokenListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.token.ListTokens, &adminv1.ListTokensRequest{})
	if err != nil {
		return err
	}
	t := columns("TOKEN", "FOR", "SITE", "REUSABLE", "MAY PUBLISH", "STATE", "ENDS")
	for _, k := range all.Tokens {
		t.add(k.Id, k.Role, k.Site, yesNo(k.Reusable), yesNo(k.MayPublish), k.State, c.print.until(k.ExpiresMs))
	}
	return c.print.table(all, "There are no join tokens. Make one: postern admin token add", t)
}

type tokenAddCmd struct {
	Site     string `help:"Site of the connector (default: the only one)." placeholder:"SITE"`
	Relay    bool   `help:"For a relay in a process of its own."`
	Reusable bool   `help:"May be used until it ends, not once."`
	Publish  bool   `help:"What the connector wants to publish is published, not proposed."`
	TTL      length `name:"ttl" help:"How long it holds." placeholder:"24h" default:"24h"`
}

// Run makes a token.
func (a *tokenAddCmd) Run(ctx context.Context, c *Conn) error {
	role := "connector"
	if a.Relay {
		role = "relay"
	}
	made, err := ask(ctx, c, c.token.CreateToken, &adminv1.CreateTokenRequest{
		Role: role, Site: a.Site, Reusable: a.Reusable, MayPublish: a.Publish, TtlS: a.TTL.seconds(),
	})
	if err != nil {
		return err
	}
	return c.print.show(made, func(w io.Writer) {
		fmt.Fprintf(w, "The token, shown only now; it ends %s:\n  %s\n", c.print.until(made.Token.GetExpiresMs()), clean(made.Secret))
		fmt.Fprintf(w, "On the other machine paste this, then the token when it asks:\n  %s\n", clean(made.Command))
		if text := a.afterwards(); text != "" {
			fmt.Fprintln(w, text)
		}
	})
}

// afterwards says what becomes of the apps that the connector names.
func (a *tokenAddCmd) afterwards() string {
	switch {
	case a.Relay:
		return ""
	case a.Publish:
		return "What the connector names with --publish NAME=HOST:PORT is published at once; nobody may use it before a rule allows it."
	default:
		return "What the connector names with --publish NAME=HOST:PORT is only proposed. Approve it: postern admin app approve NAME"
	}
}

type tokenRevokeCmd struct {
	Token string `arg:"" help:"Id, as the list shows it."`
}

// Run revokes a token.
func (r *tokenRevokeCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.token.RevokeToken, &adminv1.TokenRef{Token: r.Token}, "Revoked the token.")
}

type connectorCmd struct {
	List    connectorListCmd    `cmd:"" help:"List connectors." example:"postern admin connector list"`
	Block   connectorBlockCmd   `cmd:"" help:"Block a connector; what runs over it ends." example:"postern admin connector block ham-1 --reason 'host was stolen'"`
	Unblock connectorUnblockCmd `cmd:"" help:"Let a blocked connector work again." example:"postern admin connector unblock ham-1"`
	Remove  connectorRemoveCmd  `cmd:"" help:"Remove a connector for good; it needs a new token." example:"postern admin connector remove ham-1"`
}

type connectorListCmd struct{}

// Run lists connectors.
func (*connectorListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.connector.ListConnectors, &adminv1.ListConnectorsRequest{})
	if err != nil {
		return err
	}
	t := columns("CONNECTOR", "SITE", "STATE", "ONLINE", "SEEN", "FLOWS", "VERSION", "HEALTH")
	for _, k := range all.Connectors {
		t.add(k.Name, k.Site, k.State, yesNo(k.Online), c.print.ago(k.LastSeenMs), fmt.Sprint(k.Flows), k.Version, strings.Join(k.Health, "; "))
	}
	return c.print.table(all, "There are no connectors yet. Make a token for one: postern admin token add", t)
}

type connectorRef struct {
	Connector string `arg:"" help:"Name or id."`
}

type connectorBlockCmd struct {
	connectorRef
	why
}

// Run blocks a connector.
func (b *connectorBlockCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.connector.BlockConnector, &adminv1.ConnectorRef{Connector: b.Connector, Reason: b.Reason}, "Blocked "+b.Connector+".")
}

type connectorUnblockCmd struct {
	connectorRef
	why
}

// Run unblocks a connector.
func (u *connectorUnblockCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.connector.UnblockConnector, &adminv1.ConnectorRef{Connector: u.Connector, Reason: u.Reason}, "Unblocked "+u.Connector+".")
}

type connectorRemoveCmd struct {
	connectorRef
	why
}

// Run removes a connector.
func (r *connectorRemoveCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.connector.RemoveConnector, &adminv1.ConnectorRef{Connector: r.Connector, Reason: r.Reason}, "Removed "+r.Connector+".")
}

type relayCmd struct {
	List   relayListCmd   `cmd:"" help:"List relays." example:"postern admin relay list"`
	Remove relayRemoveCmd `cmd:"" help:"Remove a relay; links move to another one." example:"postern admin relay remove rly_..."`
}

type relayListCmd struct{}

// Run lists relays.
func (*relayListCmd) Run(ctx context.Context, c *Conn) error {
	all, err := ask(ctx, c, c.connector.ListRelays, &adminv1.ListRelaysRequest{})
	if err != nil {
		return err
	}
	t := columns("RELAY", "ADDRESSES", "STATE", "SEEN", "ID")
	for _, r := range all.Relays {
		seen := c.print.ago(r.LastSeenMs)
		if r.Builtin {
			seen = "inside the broker"
		}
		t.add(r.Name, strings.Join(r.Addresses, ", "), r.State, seen, r.Id)
	}
	return c.print.table(all, "There are no relays: nothing can be reached.", t)
}

type relayRemoveCmd struct {
	Relay string `arg:"" help:"Id, as the list shows it."`
}

// Run removes a relay.
func (r *relayRemoveCmd) Run(ctx context.Context, c *Conn) error {
	return act(ctx, c, c.connector.RemoveRelay, &adminv1.RelayRef{Relay: r.Relay}, "Removed "+r.Relay+".")
}
