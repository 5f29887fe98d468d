package store

import (
	"context"
	"fmt"
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// Broker is one broker process of the installation.
type Broker struct {
	ID        ids.BrokerID
	Name      string
	Version   string
	StartedAt time.Time
	SeenAt    time.Time
}

// PutBroker records that a broker runs; it is called at the start and every few seconds.
func (s *Store) PutBroker(ctx context.Context, b Broker) error {
	return s.write(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, `INSERT INTO brokers (id, name, version, started_at, seen_at) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version,
				started_at = excluded.started_at, seen_at = excluded.seen_at`,
			b.ID, b.Name, b.Version, unixMilli(b.StartedAt), unixMilli(b.SeenAt))
		if err != nil {
			return fmt.Errorf("write broker %s: %w", b.ID, err)
		}
		return nil
	})
}

// Brokers lists all brokers, by id.
func (s *Store) Brokers(ctx context.Context) ([]Broker, error) {
	list, err := scanRows(ctx, s.read(ctx), scanBroker,
		`SELECT id, name, version, started_at, seen_at FROM brokers ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("list brokers: %w", err)
	}
	return list, nil
}

func scanBroker(row scanner) (Broker, error) {
	var b Broker
	var started, seen int64
	err := row.Scan(&b.ID, &b.Name, &b.Version, &started, &seen)
	b.StartedAt, b.SeenAt = fromMilli(started), fromMilli(seen)
	return b, err
}
