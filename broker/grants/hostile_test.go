package grants_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/grants"
	"github.com/postern-zt/postern/broker/store/storetest"
	"github.com/postern-zt/postern/proto/seal"
)

// A malicious connector attaches again and again and claims a little more each time. The
// sequences of all connectors must not run away from the clock: after a restart the others
// would refuse every statement until the clock has caught up.
func TestOneConnectorCannotRaiseTheSequenceStepByStep(t *testing.T) {
	sign := signer()
	l, err := grants.New(grants.Config{
		Store: storetest.Open(t, storetest.SQLite(t)), Signer: sign, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return day },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Load(t.Context(), 1, day); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		l.Attach(conTwo, grants.Applied{Epoch: 1, Revoked: l.Sequence() + 1<<20})
	}
	honest := world{Ledger: l, keys: seal.NewKeys(sign.Public())}
	ahead := honest.statement(t, conOne, day).Revoked - uint64(day.UnixMilli())
	if limit := uint64(1 << 20); ahead > limit {
		t.Errorf("an honest connector hears a sequence %d ms ahead of the clock, want at most %d", ahead, limit)
	}
}
