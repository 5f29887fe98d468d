package control_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/chain"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

func wireHead(seq uint64, hash byte) *controlv1.AuditHead {
	h := &controlv1.AuditHead{Writer: "brk_1", Seq: seq}
	if hash != 0 {
		h.Hash = bytes.Repeat([]byte{hash}, 32)
	}
	return h
}

// witness restarts from what was stored.
func witness(t *testing.T, stored *[]byte, log *bytes.Buffer) *control.Witness {
	t.Helper()
	return control.NewWitness(func() (m chain.Memory, err error) {
		if len(*stored) > 0 {
			err = json.Unmarshal(*stored, &m)
		}
		return m, err
	}, func(m chain.Memory) (err error) {
		*stored, err = json.Marshal(m)
		return err
	}, slog.New(slog.NewTextHandler(log, nil)))
}

func TestWitnessAcrossRestarts(t *testing.T) {
	for name, c := range map[string]struct {
		answer *controlv1.AuditHead
		lost   bool
	}{
		"whole":        {wireHead(7, 1), false},
		"cut tail":     {wireHead(7, 0), true},
		"rewritten":    {wireHead(7, 2), true},
		"short hash":   {&controlv1.AuditHead{Writer: "brk_1", Seq: 7, Hash: []byte{1}}, true},
		"archived":     {&controlv1.AuditHead{Writer: "brk_1", Seq: 7, Archived: true}, false},
		"not answered": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			var stored []byte
			var log bytes.Buffer
			witness(t, &stored, &log).Take(t.Context(), &controlv1.AuditHeads{Head: wireHead(7, 1)})
			w := witness(t, &stored, &log)
			asked := w.Asked()
			if len(asked) != 1 || asked[0].Seq != 7 || len(asked[0].Hash) != 0 {
				t.Fatalf("asks %v, want record 7 without its hash", asked)
			}
			told := &controlv1.AuditHeads{Head: wireHead(9, 3)}
			if c.answer != nil {
				told.Remembered = []*controlv1.AuditHead{c.answer}
			}
			w.Take(t.Context(), told)
			again := witness(t, &stored, &log)
			if got := again.Problem() != ""; got != c.lost {
				t.Errorf("after a restart the problem is %q", again.Problem())
			}
			if got := strings.Contains(log.String(), "level=ERROR"); got != c.lost {
				t.Errorf("log: %s", &log)
			}
			if heads := again.Heads(); !strings.HasPrefix(heads[len(heads)-1], "brk_1:9:0303") {
				t.Errorf("remembers %q", heads)
			}
		})
	}
	damaged := []byte("{")
	var log bytes.Buffer
	if w := witness(t, &damaged, &log); w.Asked() != nil || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("with a damaged memory: %v, log %s", w.Asked(), &log)
	}
	var none *control.Witness
	none.Take(t.Context(), &controlv1.AuditHeads{Head: wireHead(1, 1)})
	if none.Asked() != nil || none.Heads() != nil || none.Problem() != "" {
		t.Error("nobody remembers something")
	}
}
