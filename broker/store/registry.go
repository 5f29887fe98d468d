package store

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/postern-zt/postern/broker/registry"
	"github.com/postern-zt/postern/proto/ids"
)

var _ registry.Store = (*Store)(nil)

// machineColumns are the last columns of each table of machines, in the order of machine.
const machineColumns = `state, key_id, spki, serial, not_after, first_seen, last_seen, address, program`

// machine is what devices, connectors and relays have in common.
type machine struct {
	state    registry.State
	identity registry.Identity
	seen     registry.Seen
}

// values returns the arguments for machineColumns.
func (m machine) values() []any {
	return []any{
		m.state, m.identity.Key.String(), m.identity.SPKI, m.identity.Serial, unixMilli(m.identity.NotAfter),
		unixMilli(m.seen.First), unixMilli(m.seen.Last), addrText(m.seen.Address), m.seen.Version,
	}
}

// scanMachine reads the columns before machineColumns into dest and those into a machine.
func scanMachine(row scanner, dest ...any) (machine, error) {
	var m machine
	var key, address string
	var notAfter, first, last int64
	err := row.Scan(append(dest, &m.state, &key, &m.identity.SPKI, &m.identity.Serial, &notAfter,
		&first, &last, &address, &m.seen.Version)...)
	if err != nil {
		return m, err
	}
	m.identity.NotAfter, m.seen.First, m.seen.Last = fromMilli(notAfter), fromMilli(first), fromMilli(last)
	m.seen.Address = parseAddr(address)
	m.identity.Key, err = ids.ParseKeyID(key)
	return m, err
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// parseAddr reads what addrText wrote; anything else is no address.
func parseAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// see stores a sighting in one of the tables of machines. It announces nothing.
func (s *Store) see(ctx context.Context, table, id string, seen registry.Seen) error {
	err := s.write(ctx, func(tx *Tx) error { return tx.see(ctx, table, id, seen) })
	return translate("see "+id, err, registry.ErrNotFound, nil)
}

func (tx *Tx) see(ctx context.Context, table, id string, seen registry.Seen) error {
	return tx.execOne(ctx, `UPDATE `+table+` SET last_seen = $1, address = $2, program = $3 WHERE id = $4`,
		unixMilli(seen.Last), addrText(seen.Address), seen.Version, id)
}

// renew stores a certificate in one of the tables of machines. It announces nothing.
func (s *Store) renew(ctx context.Context, table, id, serial string, notAfter time.Time) error {
	err := s.write(ctx, func(tx *Tx) error {
		return tx.execOne(ctx, `UPDATE `+table+` SET serial = $1, not_after = $2 WHERE id = $3`, serial, unixMilli(notAfter), id)
	})
	return translate("renew "+id, err, registry.ErrNotFound, nil)
}

const deviceColumns = `id, user_id, name, os, hardware, ` + machineColumns

func scanDevice(row scanner) (registry.Device, error) {
	var d registry.Device
	m, err := scanMachine(row, &d.ID, &d.User, &d.Name, &d.OS, &d.Hardware)
	d.State, d.Identity, d.Seen = m.state, m.identity, m.seen
	return d, err
}

// Device returns one device.
func (s *Store) Device(ctx context.Context, id ids.DeviceID) (registry.Device, error) {
	d, err := scanRow(ctx, s.read(ctx), scanDevice, `SELECT `+deviceColumns+` FROM devices WHERE id = $1`, id)
	return d, translate("read device", err, registry.ErrNotFound, nil)
}

// DeviceByKey returns the device with this identity key.
func (s *Store) DeviceByKey(ctx context.Context, key ids.KeyID) (registry.Device, error) {
	d, err := scanRow(ctx, s.read(ctx), scanDevice, `SELECT `+deviceColumns+` FROM devices WHERE key_id = $1`, key.String())
	return d, translate("read device", err, registry.ErrNotFound, nil)
}

// Devices lists the devices that a user enrolled, or all for an empty user.
func (s *Store) Devices(ctx context.Context, user ids.UserID) ([]registry.Device, error) {
	list, err := scanRows(ctx, s.read(ctx), scanDevice,
		`SELECT `+deviceColumns+` FROM devices WHERE user_id = $1 OR $2 = '' ORDER BY id`, user, user)
	return list, translate("list devices", err, nil, nil)
}

// CreateDevice stores a new device.
func (s *Store) CreateDevice(ctx context.Context, d registry.Device) error {
	args := append([]any{d.ID, d.User, d.Name, d.OS, d.Hardware}, machine{d.State, d.Identity, d.Seen}.values()...)
	err := s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO devices (`+deviceColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`, args...)
		if err != nil {
			return err
		}
		return tx.changed(ctx, registry.TopicDevice, string(d.ID))
	})
	return translate("create device", err, nil, registry.ErrExists)
}

// ChangeDevice edits a device in one transaction.
func (s *Store) ChangeDevice(ctx context.Context, id ids.DeviceID, change func(*registry.Device) error) (registry.Device, error) {
	var d registry.Device
	err := s.write(ctx, func(tx *Tx) error {
		var err error
		if d, err = s.Device(tx.Context(ctx), id); err != nil {
			return err
		}
		if err := change(&d); err != nil {
			return err
		}
		err = tx.execOne(ctx, `UPDATE devices SET user_id = $1, name = $2, state = $3 WHERE id = $4`, d.User, d.Name, d.State, id)
		if err != nil {
			return err
		}
		return tx.changed(ctx, registry.TopicDevice, string(id))
	})
	return d, translate("change device", err, registry.ErrNotFound, nil)
}

// SeeDevice stores a sighting.
func (s *Store) SeeDevice(ctx context.Context, id ids.DeviceID, seen registry.Seen) error {
	return s.see(ctx, "devices", string(id), seen)
}

// RenewDevice stores the certificate issued last.
func (s *Store) RenewDevice(ctx context.Context, id ids.DeviceID, serial string, notAfter time.Time) error {
	return s.renew(ctx, "devices", string(id), serial, notAfter)
}

// PutFacts stores the facts of a device unless newer ones are there.
func (s *Store) PutFacts(ctx context.Context, f registry.DeviceFacts) error {
	err := s.write(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, `INSERT INTO device_facts (device_id, observed_at, facts) VALUES ($1, $2, $3)
			ON CONFLICT (device_id) DO UPDATE SET observed_at = excluded.observed_at, facts = excluded.facts
			WHERE device_facts.observed_at <= excluded.observed_at`, f.Device, unixMilli(f.ObservedAt), string(f.Facts))
		if err != nil || n == 0 {
			return err
		}
		return tx.changed(ctx, registry.TopicFacts, string(f.Device))
	})
	return translate("write facts", err, nil, registry.ErrNotFound)
}

// Facts returns the facts of a device.
func (s *Store) Facts(ctx context.Context, id ids.DeviceID) (registry.DeviceFacts, error) {
	f, err := scanRow(ctx, s.read(ctx), func(row scanner) (registry.DeviceFacts, error) {
		f := registry.DeviceFacts{Device: id}
		var at int64
		var facts string
		err := row.Scan(&at, &facts)
		f.ObservedAt, f.Facts = fromMilli(at), []byte(facts)
		return f, err
	}, `SELECT observed_at, facts FROM device_facts WHERE device_id = $1`, id)
	return f, translate("read facts", err, registry.ErrNotFound, nil)
}

// siteExists fails with ErrNotFound for a site that is gone.
func (tx *Tx) siteExists(ctx context.Context, id ids.SiteID) error {
	if _, err := scanRow(ctx, tx, scanOne[string], `SELECT id FROM sites WHERE id = $1`, id); err != nil {
		return fmt.Errorf("site %s: %w", id, err)
	}
	return nil
}
