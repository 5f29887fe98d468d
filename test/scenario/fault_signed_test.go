package scenario

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/postern-zt/postern/connector/guard"
	"github.com/postern-zt/postern/platform/clock"
	"github.com/postern-zt/postern/proto/grant"
	"github.com/postern-zt/postern/proto/ids"
	"github.com/postern-zt/postern/proto/seal"
	"github.com/postern-zt/postern/proto/tlv"
)

// TestFaultStatement: a connector takes no statement that is tampered, foreign, from another
// broker, replayed, over, or that says something critical which it does not understand; none
// of them lets flows open, and a good one beside them does.
func TestFaultStatement(t *testing.T) {
	self, now := ids.New[ids.ConnectorID](), clock.Now()
	broker, stranger := newSigner(t), newSigner(t)
	fresh := func(s *seal.Signer, change func(st *grant.Statement)) []byte {
		st := &grant.Statement{Connector: self, Epoch: 1, Sequence: 7, Time: now.Wall, Until: now.Wall.Add(time.Minute)}
		change(st)
		return grant.SealStatement(s, st)
	}
	asIs := func(*grant.Statement) {}
	good := fresh(broker, asIs)
	bad := map[string][]byte{
		"foreign":             fresh(broker, func(st *grant.Statement) { st.Connector = ids.New[ids.ConnectorID]() }),
		"of another broker":   fresh(stranger, asIs),
		"an hour old":         fresh(broker, func(st *grant.Statement) { st.Time, st.Until = now.Wall.Add(-time.Hour), now.Wall.Add(-59*time.Minute) }),
		"over":                fresh(broker, func(st *grant.Statement) { st.Until = st.Time }),
		"of an earlier epoch": fresh(broker, func(st *grant.Statement) { st.Epoch = 0 }),
		"cut":                 good[:len(good)-1],
		"empty":               nil,
		"unknown critical":    withField(t, broker, good, true),
	}
	for i := 0; i < len(good); i += 5 {
		tampered := bytes.Clone(good)
		tampered[i] ^= 0x20
		bad[fmt.Sprintf("tampered at byte %d", i)] = tampered
	}
	for name, envelope := range bad {
		g := guard.New(self, guard.Mark{Epoch: 1})
		g.SetKeys(seal.NewKeys(broker.Public()))
		_, err := g.ApplyStatement(envelope, now)
		if g.Live(now) {
			t.Errorf("%s: flows may open, %v", name, err)
		}
		if name == "unknown critical" && !errors.Is(err, grant.ErrUnsupportedConstraint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := guard.New(self, guard.Mark{Epoch: 1})
	g.SetKeys(seal.NewKeys(broker.Public()))
	if _, err := g.ApplyStatement(withField(t, broker, good, false), now); err != nil || !g.Live(now) {
		t.Errorf("a good one with something new that is not critical: %v", err)
	}
	if _, err := g.ApplyStatement(good, now); !errors.Is(err, guard.ErrOld) {
		t.Errorf("replayed: %v, want %v", err, guard.ErrOld)
	}
}

func newSigner(t testing.TB) *seal.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return seal.NewSigner(key)
}

// withField signs a statement again with a field that no build knows.
func withField(t testing.TB, s *seal.Signer, envelope []byte, critical bool) []byte {
	t.Helper()
	body, err := seal.NewKeys(s.Public()).Open(seal.Statement, envelope)
	if err != nil {
		t.Fatal(err)
	}
	var w tlv.Writer
	w.PutUint(99, critical, 1)
	return s.Seal(seal.Statement, append(bytes.Clone(body), w.Bytes()...))
}
