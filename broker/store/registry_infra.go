package store

import (
	"context"
	"time"

	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

const connectorColumns = `id, site_id, name, may_publish, health, assignment, applied, ` + machineColumns

func scanConnector(row scanner) (registry.Connector, error) {
	var c registry.Connector
	var health string
	m, err := scanMachine(row, &c.ID, &c.Site, &c.Name, &c.MayPublish, &health, &c.Assignment, &c.Applied)
	c.State, c.Identity, c.Seen = m.state, m.identity, m.seen
	if health != "" {
		c.Health = []byte(health)
	}
	return c, err
}

// Connector returns one connector.
func (s *Store) Connector(ctx context.Context, id ids.ConnectorID) (registry.Connector, error) {
	c, err := scanRow(ctx, s.read(ctx), scanConnector, `SELECT `+connectorColumns+` FROM connectors WHERE id = $1`, id)
	return c, translate("read connector", err, registry.ErrNotFound, nil)
}

// ConnectorByKey returns the connector with this identity key.
func (s *Store) ConnectorByKey(ctx context.Context, key ids.KeyID) (registry.Connector, error) {
	c, err := scanRow(ctx, s.read(ctx), scanConnector, `SELECT `+connectorColumns+` FROM connectors WHERE key_id = $1`, key.String())
	return c, translate("read connector", err, registry.ErrNotFound, nil)
}

// Connectors lists the connectors of a site, or all for an empty site.
func (s *Store) Connectors(ctx context.Context, site ids.SiteID) ([]registry.Connector, error) {
	list, err := scanRows(ctx, s.read(ctx), scanConnector,
		`SELECT `+connectorColumns+` FROM connectors WHERE site_id = $1 OR $2 = '' ORDER BY id`, site, site)
	return list, translate("list connectors", err, nil, nil)
}

// CreateConnector stores a new connector of a site that exists.
func (s *Store) CreateConnector(ctx context.Context, c registry.Connector) error {
	args := append([]any{c.ID, c.Site, c.Name, c.MayPublish, string(c.Health), c.Assignment, c.Applied},
		machine{c.State, c.Identity, c.Seen}.values()...)
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.siteExists(ctx, c.Site); err != nil {
			return err
		}
		_, err := tx.exec(ctx, `INSERT INTO connectors (`+connectorColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`, args...)
		if err != nil {
			return err
		}
		return tx.changed(ctx, registry.TopicConnector, string(c.ID))
	})
	return translate("create connector", err, registry.ErrNotFound, registry.ErrExists)
}

// ChangeConnector edits a connector in one transaction.
func (s *Store) ChangeConnector(ctx context.Context, id ids.ConnectorID, change func(*registry.Connector) error) (registry.Connector, error) {
	var c registry.Connector
	err := s.write(ctx, func(tx *Tx) error {
		var err error
		if c, err = s.Connector(tx.Context(ctx), id); err != nil {
			return err
		}
		if err := change(&c); err != nil {
			return err
		}
		err = tx.execOne(ctx, `UPDATE connectors SET name = $1, state = $2, may_publish = $3 WHERE id = $4`, c.Name, c.State, c.MayPublish, id)
		if err != nil {
			return err
		}
		return tx.changed(ctx, registry.TopicConnector, string(id))
	})
	return c, translate("change connector", err, registry.ErrNotFound, nil)
}

// SeeConnector stores a sighting with a report.
func (s *Store) SeeConnector(ctx context.Context, id ids.ConnectorID, seen registry.Seen, r registry.ConnectorReport) error {
	err := s.write(ctx, func(tx *Tx) error {
		if err := tx.see(ctx, "connectors", string(id), seen); err != nil {
			return err
		}
		if r.Health != nil {
			if err := tx.execOne(ctx, `UPDATE connectors SET health = $1 WHERE id = $2`, string(r.Health), id); err != nil {
				return err
			}
		}
		if r.Assignment != 0 {
			if err := tx.execOne(ctx, `UPDATE connectors SET assignment = $1 WHERE id = $2`, r.Assignment, id); err != nil {
				return err
			}
		}
		if r.Applied == 0 {
			return nil
		}
		return tx.execOne(ctx, `UPDATE connectors SET applied = $1 WHERE id = $2`, r.Applied, id)
	})
	return translate("see connector", err, registry.ErrNotFound, nil)
}

// RenewConnector stores the certificate issued last.
func (s *Store) RenewConnector(ctx context.Context, id ids.ConnectorID, serial string, notAfter time.Time) error {
	return s.renew(ctx, "connectors", string(id), serial, notAfter)
}

const relayColumns = `id, name, hpke, tcp, udp, ` + machineColumns

func scanRelay(row scanner) (registry.Relay, error) {
	var r registry.Relay
	var tcp, udp string
	m, err := scanMachine(row, &r.ID, &r.Name, &r.HPKE, &tcp, &udp)
	if err != nil {
		return r, err
	}
	r.State, r.Identity, r.Seen = m.state, m.identity, m.seen
	if err := fromJSON(tcp, &r.TCP); err != nil {
		return r, err
	}
	return r, fromJSON(udp, &r.UDP)
}

// Relay returns one relay.
func (s *Store) Relay(ctx context.Context, id ids.RelayID) (registry.Relay, error) {
	r, err := scanRow(ctx, s.read(ctx), scanRelay, `SELECT `+relayColumns+` FROM relays WHERE id = $1`, id)
	return r, translate("read relay", err, registry.ErrNotFound, nil)
}

// RelayByKey returns the relay with this identity key.
func (s *Store) RelayByKey(ctx context.Context, key ids.KeyID) (registry.Relay, error) {
	r, err := scanRow(ctx, s.read(ctx), scanRelay, `SELECT `+relayColumns+` FROM relays WHERE key_id = $1`, key.String())
	return r, translate("read relay", err, registry.ErrNotFound, nil)
}

// Relays lists all relays.
func (s *Store) Relays(ctx context.Context) ([]registry.Relay, error) {
	list, err := scanRows(ctx, s.read(ctx), scanRelay, `SELECT `+relayColumns+` FROM relays ORDER BY id`)
	return list, translate("list relays", err, nil, nil)
}

// CreateRelay stores a new relay.
func (s *Store) CreateRelay(ctx context.Context, r registry.Relay) error {
	tcp, udp, err := addressLists(r)
	if err != nil {
		return err
	}
	args := append([]any{r.ID, r.Name, r.HPKE, tcp, udp}, machine{r.State, r.Identity, r.Seen}.values()...)
	err = s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO relays (`+relayColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`, args...)
		if err != nil {
			return err
		}
		return tx.changed(ctx, registry.TopicRelay, string(r.ID))
	})
	return translate("create relay", err, nil, registry.ErrExists)
}

func addressLists(r registry.Relay) (tcp, udp string, err error) {
	if tcp, err = toJSON(r.TCP); err != nil {
		return "", "", err
	}
	udp, err = toJSON(r.UDP)
	return tcp, udp, err
}

// ChangeRelay edits a relay in one transaction.
func (s *Store) ChangeRelay(ctx context.Context, id ids.RelayID, change func(*registry.Relay) error) (registry.Relay, error) {
	var r registry.Relay
	err := s.write(ctx, func(tx *Tx) error {
		var err error
		if r, err = s.Relay(tx.Context(ctx), id); err != nil {
			return err
		}
		if err := change(&r); err != nil {
			return err
		}
		tcp, udp, err := addressLists(r)
		if err != nil {
			return err
		}
		err = tx.execOne(ctx, `UPDATE relays SET name = $1, hpke = $2, tcp = $3, udp = $4, state = $5 WHERE id = $6`,
			r.Name, r.HPKE, tcp, udp, r.State, id)
		if err != nil {
			return err
		}
		return tx.changed(ctx, registry.TopicRelay, string(id))
	})
	return r, translate("change relay", err, registry.ErrNotFound, nil)
}

// SeeRelay stores a sighting.
func (s *Store) SeeRelay(ctx context.Context, id ids.RelayID, seen registry.Seen) error {
	return s.see(ctx, "relays", string(id), seen)
}

// RenewRelay stores the certificate issued last.
func (s *Store) RenewRelay(ctx context.Context, id ids.RelayID, serial string, notAfter time.Time) error {
	return s.renew(ctx, "relays", string(id), serial, notAfter)
}
