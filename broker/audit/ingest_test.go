package audit_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// connector writes a chain as a connector does.
type connector struct {
	id   ids.ConnectorID
	key  *ecdsa.PrivateKey
	seq  uint64
	prev audit.Hash
	lie  uint64 // tells another story under the same numbers
}

func newConnector() *connector {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return &connector{id: ids.New[ids.ConnectorID](), key: key}
}

// keyID names the identity key.
func (c *connector) keyID() ids.KeyID {
	spki, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		panic(err)
	}
	return ids.KeyIDOf(spki)
}

// unsigned is a shipment of a connector of before there were signatures.
func (c *connector) unsigned(lines [][]byte) audit.Shipment {
	return audit.Shipment{Connector: c.id, Records: lines}
}

// signed is a shipment of the last lines that were written, or of others in their place.
func (c *connector) signed(lines [][]byte, change ...func(*chain.SignedHead)) audit.Shipment {
	h := chain.SignedHead{
		Connector: c.id, First: c.seq - uint64(len(lines)) + 1, Last: c.seq, Count: uint64(len(lines)),
		Hash: c.prev, At: time.UnixMilli(1),
	}
	for _, f := range change {
		f(&h)
	}
	env, err := h.Seal(c.key)
	if err != nil {
		panic(err)
	}
	return audit.Shipment{Connector: c.id, Key: c.keyID(), Records: lines, SignedHead: env}
}

// write returns the next n lines; extra is a field that this broker does not know.
func (c *connector) write(n int) [][]byte {
	var lines [][]byte
	for range n {
		c.seq++
		line, err := json.Marshal(map[string]any{
			"v": 1, "writer": c.id, "seq": c.seq, "time_ms": 1000 + c.seq, "prev": c.prev, "kind": "flow_open", "extra": c.seq + c.lie,
		})
		if err != nil {
			panic(err)
		}
		c.prev = audit.HashLine(line)
		lines = append(lines, line)
	}
	return lines
}

func ship(t *testing.T, f fixture, c *connector, n int) {
	t.Helper()
	if through, err := f.Ingest(t.Context(), c.unsigned(c.write(n))); err != nil || through != c.seq {
		t.Fatalf("Ingest = %d, %v, want %d", through, err, c.seq)
	}
}

func TestIngestRemovesDuplicates(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c := newLog(t, open()), newConnector()
		first := c.write(3)
		for range 2 { // the acknowledgement was lost: everything comes again
			if through, err := f.Ingest(t.Context(), c.unsigned(first)); err != nil || through != 3 {
				t.Errorf("Ingest = %d, %v, want 3", through, err)
			}
		}
		if through, err := f.Ingest(t.Context(), c.unsigned(append(first[2:], c.write(2)...))); err != nil || through != 5 {
			t.Errorf("overlapping Ingest = %d, %v, want 5", through, err)
		}
		if through, err := f.Ingest(t.Context(), c.unsigned(nil)); err != nil || through != 5 {
			t.Errorf("empty Ingest = %d, %v, want 5", through, err)
		}
		f.mustHold(t, 5)
	})
}

func TestIngestRefuses(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c := newLog(t, open()), newConnector()
		ship(t, f, c, 2)
		fork := &connector{id: c.id}
		fork.prev = audit.Hash{1}
		other := newConnector()
		lines := c.write(3)
		for name, bad := range map[string]struct {
			lines [][]byte
			want  error
		}{
			"another record under a known number": {fork.write(1), audit.ErrForked},
			"a continuation of another history":   {(&connector{id: c.id, seq: 2, prev: audit.Hash{2}}).write(1), audit.ErrForked},
			"another connector's records":         {other.write(1), audit.ErrMalformed},
			"a hole inside":                       {[][]byte{lines[0], lines[2]}, audit.ErrForked},
			"text that is not UTF-8":              {[][]byte{bytes.Replace(lines[0], []byte(`"flow_open"`), []byte("\"flow\xff\""), 1)}, audit.ErrMalformed},
			"garbage":                             {[][]byte{[]byte("x")}, audit.ErrMalformed},
			"too many":                            {make([][]byte, 5000), audit.ErrMalformed},
		} {
			if _, err := f.Ingest(t.Context(), c.unsigned(bad.lines)); !errors.Is(err, bad.want) {
				t.Errorf("Ingest of %s = %v, want %v", name, err, bad.want)
			}
		}
		f.mustHold(t, 2)
	})
}

func TestIngestSignsAGap(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		f, c := newLog(t, open()), newConnector()
		ship(t, f, c, 2)
		c.write(3) // acknowledged by a store that was since restored from a backup
		ship(t, f, c, 2)
		ship(t, f, c, 2)
		f.mustHold(t, 7) // six of the connector, one of the broker about the gap
		gaps := f.records(t, audit.Query{Kind: audit.Gap})
		if len(gaps) != 1 || gaps[0].Details["from"] != "3" || gaps[0].Details["to"] != "5" {
			t.Errorf("gap records = %+v, want one from 3 to 5", gaps)
		}
		for _, w := range f.verify(t).Writers {
			if w.Writer == string(c.id) && w.Missing != 3 {
				t.Errorf("report = %+v, want 3 missing", w)
			}
		}
	})
}
