package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Topics of the change events that the store writes with each new row and each change of
// state or name; the key is the id.
const (
	TopicDevice    = "device"
	TopicConnector = "connector"
	TopicRelay     = "relay"
	TopicFacts     = "facts" // key: device id
)

// DeviceStore keeps devices.
type DeviceStore interface {
	Device(ctx context.Context, id ids.DeviceID) (Device, error)
	DeviceByKey(ctx context.Context, key ids.KeyID) (Device, error)
	// Devices lists the devices that a user enrolled, or all for an empty user, by id.
	Devices(ctx context.Context, user ids.UserID) ([]Device, error)
	// CreateDevice fails with ErrExists for a known key, removed rows included.
	CreateDevice(ctx context.Context, d Device) error
	// ChangeDevice loads the row, lets change edit it and stores it; an error of change
	// leaves it as it was.
	ChangeDevice(ctx context.Context, id ids.DeviceID, change func(*Device) error) (Device, error)
	// SeeDevice stores when and how the device was seen, without a change event.
	SeeDevice(ctx context.Context, id ids.DeviceID, seen Seen) error
	// RenewDevice stores the certificate issued last, without a change event.
	RenewDevice(ctx context.Context, id ids.DeviceID, serial string, notAfter time.Time) error
	PutFacts(ctx context.Context, f DeviceFacts) error
	Facts(ctx context.Context, id ids.DeviceID) (DeviceFacts, error)
}

// ConnectorStore keeps connectors; its methods are as those of DeviceStore.
type ConnectorStore interface {
	Connector(ctx context.Context, id ids.ConnectorID) (Connector, error)
	ConnectorByKey(ctx context.Context, key ids.KeyID) (Connector, error)
	// Connectors lists the connectors of a site, or all for an empty site, by id.
	Connectors(ctx context.Context, site ids.SiteID) ([]Connector, error)
	CreateConnector(ctx context.Context, c Connector) error
	ChangeConnector(ctx context.Context, id ids.ConnectorID, change func(*Connector) error) (Connector, error)
	// SeeConnector stores what a connector reports, without a change event; nil health and
	// zero numbers leave what is there.
	SeeConnector(ctx context.Context, id ids.ConnectorID, seen Seen, r ConnectorReport) error
	RenewConnector(ctx context.Context, id ids.ConnectorID, serial string, notAfter time.Time) error
}

// RelayStore keeps relays; its methods are as those of DeviceStore.
type RelayStore interface {
	Relay(ctx context.Context, id ids.RelayID) (Relay, error)
	RelayByKey(ctx context.Context, key ids.KeyID) (Relay, error)
	Relays(ctx context.Context) ([]Relay, error)
	CreateRelay(ctx context.Context, r Relay) error
	ChangeRelay(ctx context.Context, id ids.RelayID, change func(*Relay) error) (Relay, error)
	SeeRelay(ctx context.Context, id ids.RelayID, seen Seen) error
	RenewRelay(ctx context.Context, id ids.RelayID, serial string, notAfter time.Time) error
}

// Store keeps all rows. broker/store implements it on both engines. Errors satisfy
// errors.Is with those of this package.
type Store interface {
	DeviceStore
	ConnectorStore
	RelayStore
}

// ConnectorReport is what a connector says with each report.
type ConnectorReport struct {
	Health     json.RawMessage
	Assignment uint64
	Applied    uint64
}

// Registry applies the rules on top of a Store.
type Registry struct {
	store Store
}

// New returns a Registry over store.
func New(store Store) *Registry { return &Registry{store: store} }

// Device returns one device.
func (r *Registry) Device(ctx context.Context, id ids.DeviceID) (Device, error) {
	return r.store.Device(ctx, id)
}

// DeviceByKey returns the device with this identity key, in any state: ask Usable.
func (r *Registry) DeviceByKey(ctx context.Context, key ids.KeyID) (Device, error) {
	return r.store.DeviceByKey(ctx, key)
}

// Devices lists the devices that a user enrolled, or all for an empty user.
func (r *Registry) Devices(ctx context.Context, user ids.UserID) ([]Device, error) {
	return r.store.Devices(ctx, user)
}

// EnrolDevice adds a device or returns the one that has the key already: a second login on
// the same machine is no second device. A blocked or removed key stays what it is.
func (r *Registry) EnrolDevice(ctx context.Context, d Device, now time.Time) (Device, error) {
	if err := d.Identity.check(); err != nil {
		return Device{}, err
	}
	d.ID, d.State = ids.New[ids.DeviceID](), Active
	d.Name, d.OS = cleanText(d.Name, maxName), cleanText(d.OS, maxName)
	d.Seen = clean(Seen{First: now, Last: now, Address: d.Seen.Address, Version: d.Seen.Version})
	known, err := r.store.DeviceByKey(ctx, d.Identity.Key)
	if errors.Is(err, ErrNotFound) {
		if err = r.store.CreateDevice(ctx, d); err == nil {
			return d, nil
		}
		if errors.Is(err, ErrExists) { // another login with this key was faster
			known, err = r.store.DeviceByKey(ctx, d.Identity.Key)
		}
	}
	if err != nil {
		return Device{}, fmt.Errorf("enrol device: %w", err)
	}
	return known, known.Usable()
}

// HandOver makes a known device the one of another user, who enrolled it by signing in.
func (r *Registry) HandOver(ctx context.Context, id ids.DeviceID, user ids.UserID) (Device, error) {
	return r.store.ChangeDevice(ctx, id, func(d *Device) error {
		d.User = user
		return d.Usable()
	})
}

// SetDeviceState blocks, unblocks or removes a device.
func (r *Registry) SetDeviceState(ctx context.Context, id ids.DeviceID, to State) (Device, error) {
	return r.store.ChangeDevice(ctx, id, func(d *Device) error { return d.State.move(to) })
}

// RenameDevice changes the name that people see.
func (r *Registry) RenameDevice(ctx context.Context, id ids.DeviceID, name string) (Device, error) {
	return r.store.ChangeDevice(ctx, id, func(d *Device) error {
		d.Name = cleanText(name, maxName)
		return nil
	})
}

// SeeDevice notes that a device was seen. It is called often and announces nothing.
func (r *Registry) SeeDevice(ctx context.Context, id ids.DeviceID, from netip.Addr, version string, now time.Time) error {
	return r.store.SeeDevice(ctx, id, clean(Seen{Last: now, Address: from, Version: version}))
}

// RenewDevice notes the certificate that was issued last.
func (r *Registry) RenewDevice(ctx context.Context, id ids.DeviceID, serial string, notAfter time.Time) error {
	return r.store.RenewDevice(ctx, id, serial, notAfter)
}

// PutFacts stores the facts that a device reported last; older ones than those stored are
// ignored by the store.
func (r *Registry) PutFacts(ctx context.Context, f DeviceFacts) error {
	if len(f.Facts) > maxJSON || !json.Valid(f.Facts) {
		return fmt.Errorf("%w: facts must be JSON of at most %d bytes", ErrInvalid, maxJSON)
	}
	return r.store.PutFacts(ctx, f)
}

// Facts returns the facts that a device reported last, or ErrNotFound.
func (r *Registry) Facts(ctx context.Context, id ids.DeviceID) (DeviceFacts, error) {
	return r.store.Facts(ctx, id)
}

// Connector returns one connector.
func (r *Registry) Connector(ctx context.Context, id ids.ConnectorID) (Connector, error) {
	return r.store.Connector(ctx, id)
}

// ConnectorByKey returns the connector with this identity key, in any state: ask Usable.
func (r *Registry) ConnectorByKey(ctx context.Context, key ids.KeyID) (Connector, error) {
	return r.store.ConnectorByKey(ctx, key)
}

// Connectors lists the connectors of a site, or all for an empty site.
func (r *Registry) Connectors(ctx context.Context, site ids.SiteID) ([]Connector, error) {
	return r.store.Connectors(ctx, site)
}

// EnrolConnector adds a connector. Its key must be new. A taken name gets a number.
func (r *Registry) EnrolConnector(ctx context.Context, c Connector, now time.Time) (Connector, error) {
	if err := c.Identity.check(); err != nil {
		return Connector{}, err
	}
	if c.Site == "" {
		return Connector{}, fmt.Errorf("%w: a connector belongs to a site", ErrInvalid)
	}
	all, err := r.store.Connectors(ctx, "")
	if err != nil {
		return Connector{}, err
	}
	taken := map[string]bool{}
	for _, o := range all {
		taken[o.Name] = o.State != Removed || taken[o.Name]
	}
	c.ID, c.State = ids.New[ids.ConnectorID](), Active
	c.Name = freeName(or(cleanText(c.Name, maxName), "connector"), taken)
	c.Seen = clean(Seen{First: now, Last: now, Address: c.Seen.Address, Version: c.Seen.Version})
	if err := r.store.CreateConnector(ctx, c); err != nil {
		return Connector{}, fmt.Errorf("enrol connector: %w", err)
	}
	return c, nil
}

// SetConnectorState blocks, unblocks or removes a connector.
func (r *Registry) SetConnectorState(ctx context.Context, id ids.ConnectorID, to State) (Connector, error) {
	return r.store.ChangeConnector(ctx, id, func(c *Connector) error { return c.State.move(to) })
}

// RenameConnector changes the name that people see.
func (r *Registry) RenameConnector(ctx context.Context, id ids.ConnectorID, name string) (Connector, error) {
	return r.store.ChangeConnector(ctx, id, func(c *Connector) error {
		c.Name = or(cleanText(name, maxName), c.Name)
		return nil
	})
}

// SeeConnector notes a report of a connector. It is called often and announces nothing.
func (r *Registry) SeeConnector(ctx context.Context, id ids.ConnectorID, from netip.Addr, version string, rep ConnectorReport, now time.Time) error {
	if len(rep.Health) > maxJSON || (rep.Health != nil && !json.Valid(rep.Health)) {
		return fmt.Errorf("%w: health must be JSON of at most %d bytes", ErrInvalid, maxJSON)
	}
	return r.store.SeeConnector(ctx, id, clean(Seen{Last: now, Address: from, Version: version}), rep)
}

// RenewConnector notes the certificate that was issued last.
func (r *Registry) RenewConnector(ctx context.Context, id ids.ConnectorID, serial string, notAfter time.Time) error {
	return r.store.RenewConnector(ctx, id, serial, notAfter)
}

// Relay returns one relay.
func (r *Registry) Relay(ctx context.Context, id ids.RelayID) (Relay, error) {
	return r.store.Relay(ctx, id)
}

// RelayByKey returns the relay with this identity key, in any state: ask Usable.
func (r *Registry) RelayByKey(ctx context.Context, key ids.KeyID) (Relay, error) {
	return r.store.RelayByKey(ctx, key)
}

// Relays lists all relays.
func (r *Registry) Relays(ctx context.Context) ([]Relay, error) { return r.store.Relays(ctx) }

// EnrolRelay adds a relay, or brings the addresses and the HPKE key of one that has the
// identity key up to date: a relay says them at each start.
func (r *Registry) EnrolRelay(ctx context.Context, l Relay, now time.Time) (Relay, error) {
	if err := l.check(); err != nil {
		return Relay{}, err
	}
	l.Name = or(cleanText(l.Name, maxName), "relay")
	known, err := r.store.RelayByKey(ctx, l.Identity.Key)
	if err == nil {
		return r.updateRelay(ctx, known.ID, l)
	}
	if !errors.Is(err, ErrNotFound) {
		return Relay{}, err
	}
	l.ID, l.State = ids.New[ids.RelayID](), Active
	l.Seen = clean(Seen{First: now, Last: now, Address: l.Seen.Address, Version: l.Seen.Version})
	if err := r.store.CreateRelay(ctx, l); err != nil {
		return Relay{}, fmt.Errorf("enrol relay: %w", err)
	}
	return l, nil
}

func (r *Registry) updateRelay(ctx context.Context, id ids.RelayID, l Relay) (Relay, error) {
	return r.store.ChangeRelay(ctx, id, func(old *Relay) error {
		old.Name, old.HPKE, old.TCP, old.UDP = l.Name, l.HPKE, l.TCP, l.UDP
		return old.Usable()
	})
}

func (l Relay) check() error {
	if err := l.Identity.check(); err != nil {
		return err
	}
	if len(l.HPKE) == 0 || len(l.HPKE) > maxSPKI {
		return fmt.Errorf("%w: HPKE key of %d bytes", ErrInvalid, len(l.HPKE))
	}
	if len(l.TCP)+len(l.UDP) == 0 || len(l.TCP) > maxAddresses || len(l.UDP) > maxAddresses {
		return fmt.Errorf("%w: a relay has 1 to %d addresses of each kind", ErrInvalid, maxAddresses)
	}
	return nil
}

// maxAddresses bounds the addresses of one relay; each client tries them all.
const maxAddresses = 8

// SetRelayState blocks, unblocks or removes a relay.
func (r *Registry) SetRelayState(ctx context.Context, id ids.RelayID, to State) (Relay, error) {
	return r.store.ChangeRelay(ctx, id, func(l *Relay) error { return l.State.move(to) })
}

// SeeRelay notes that a relay was seen. It is called often and announces nothing.
func (r *Registry) SeeRelay(ctx context.Context, id ids.RelayID, from netip.Addr, version string, now time.Time) error {
	return r.store.SeeRelay(ctx, id, clean(Seen{Last: now, Address: from, Version: version}))
}

// RenewRelay notes the certificate that was issued last.
func (r *Registry) RenewRelay(ctx context.Context, id ids.RelayID, serial string, notAfter time.Time) error {
	return r.store.RenewRelay(ctx, id, serial, notAfter)
}

// move changes a state; removed is final, and an unknown wish is refused.
func (s *State) move(to State) error {
	if *s == Removed && to != Removed {
		return ErrRemoved
	}
	switch to {
	case Active, Blocked, Removed:
		*s = to
		return nil
	default:
		return fmt.Errorf("%w: state %q", ErrInvalid, to)
	}
}

func clean(s Seen) Seen {
	s.Version, s.Address = cleanText(s.Version, maxVersion), s.Address.Unmap()
	return s
}

// freeName appends the first number that makes name free.
func freeName(name string, taken map[string]bool) string {
	free := name
	for i := 2; taken[free]; i++ {
		free = name + "-" + strconv.Itoa(i)
	}
	return free
}

func or(s, standard string) string {
	if s == "" {
		return standard
	}
	return s
}
