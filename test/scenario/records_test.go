package scenario

import (
	"encoding/json"
	"io"
	"strconv"
	"testing"

	"connectrpc.com/connect"

	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/chain"
)

// records returns the audit records of a kind, as the administrator finds them.
func (w *world) records(kind chain.Kind) []chain.Record {
	w.t.Helper()
	var out []chain.Record
	page := ""
	for {
		resp, err := w.admin.audit.Search(w.ctx(), connect.NewRequest(&adminv1.SearchRequest{
			Kind: string(kind), Page: &adminv1.Page{Size: 100, Token: page},
		}))
		m := must(w.t, resp, err)
		for _, r := range m.Records {
			var rec chain.Record
			if err := json.Unmarshal([]byte(r.Json), &rec); err != nil {
				w.t.Fatalf("record %s %d: %v", r.Writer, r.Seq, err)
			}
			out = append(out, rec)
		}
		if page = m.Next; page == "" || len(m.Records) == 0 {
			return out
		}
	}
}

func (w *world) verify() *adminv1.VerifyResponse {
	w.t.Helper()
	resp, err := w.admin.audit.Verify(w.ctx(), connect.NewRequest(&adminv1.VerifyRequest{}))
	return must(w.t, resp, err)
}

// TestEveryFlowHasItsRecords: each flow leaves one open and one close with the bytes that
// the app itself counted, under the receipt of its decision, in a chain that verifies; a
// changed record shows (invariant 9).
func TestEveryFlowHasItsRecords(t *testing.T) {
	wiki, dns := echo(t), echoUDP(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	w.publish("dns", "berlin", dns.udpTarget())
	w.allow("ann", "wiki")
	w.allow("ann", "dns")
	d := w.device("ann", "ann-laptop")
	flows := 0
	for _, kind := range bothCarriers {
		tn, ref, _ := d.open("wiki", kind)
		for size := range 5 {
			talk(t, tn.tcp(ref, wiki.port()), 1000*size)
			flows++
		}
		p := tn.udp(tn.accepted(d.granted("dns").Grant), dns.port())
		exchange(t, p, []byte("one datagram"))
		p.Close()
		flows++
	}
	var closes []chain.Record
	eventually(t, "all records are shipped", func() bool { closes = w.records(chain.FlowClosed); return len(closes) >= flows })
	checkRecords(t, w, closes, flows, wiki, dns)
	if v := w.verify(); !v.Ok || v.Problem != "" || v.Records == 0 {
		t.Errorf("verify: %v", v)
	}
	w.exec(`UPDATE audit_records SET line = replace(line, 'flow_open', 'flow_opem')`)
	if v := w.verify(); v.Ok || v.Problem == "" {
		t.Errorf("verify after a record was changed: %v", v)
	}
	w.exec(`UPDATE audit_records SET line = replace(line, 'flow_opem', 'flow_open')`)
	w.exec(`DELETE FROM audit_records WHERE kind = 'flow_close' AND seq = (SELECT max(seq) FROM audit_records WHERE kind = 'flow_close')`)
	if v := w.verify(); v.Ok || v.Problem == "" {
		t.Errorf("verify after the last close was removed: %v", v)
	}
	w.proc.tolerate = true // a broker refuses to sign what does not hold, and says so at its end
}

// talk sends so many bytes, reads them back and ends in both directions.
func talk(t *testing.T, f interface {
	io.ReadWriteCloser
	CloseWrite() error
}, size int) {
	t.Helper()
	defer f.Close()
	if _, err := io.CopyN(f, &pattern{}, int64(size)); err != nil {
		t.Fatal(err)
	}
	if err := f.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, f); err != nil || n != int64(size) {
		t.Fatalf("read back %d of %d bytes: %v", n, size, err)
	}
}

func checkRecords(t *testing.T, w *world, closes []chain.Record, flows int, apps ...*app) {
	t.Helper()
	opens := map[string]chain.Record{}
	for _, r := range w.records(chain.FlowOpened) {
		if _, twice := opens[r.Details["flow"]]; twice {
			t.Errorf("flow %s has two opens", r.Details["flow"])
		}
		opens[r.Details["flow"]] = r
	}
	var to, from uint64
	closed := map[string]bool{}
	for _, r := range closes {
		o, ok := opens[r.Details["flow"]]
		if !ok || closed[r.Details["flow"]] || o.Receipt != r.Receipt || r.Receipt == "" || r.Inexact || r.Details["cause"] != "ok" && o.Details["network"] == "tcp" {
			t.Errorf("close %+v belongs to open %+v", r.Event, o.Event)
		}
		closed[r.Details["flow"]] = true
		to += number(t, r.Details["to_app"])
		from += number(t, r.Details["from_app"])
	}
	if len(opens) != flows || len(closed) != flows {
		t.Errorf("%d opens and %d closes of %d flows", len(opens), len(closed), flows)
	}
	var in, out uint64
	for _, a := range apps {
		i, o := a.bytes()
		in, out = in+i, out+o
	}
	if to != in || from != out {
		t.Errorf("records say %d bytes to the apps and %d from them, the apps say %d and %d", to, from, in, out)
	}
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRefusedFlowsAreRecorded: what the broker refuses stands in the audit under the
// employee's receipt.
func TestRefusedFlowsAreRecorded(t *testing.T) {
	wiki := echo(t)
	w := newWorld(t, "ann")
	w.connector("berlin-1", w.site("berlin"))
	w.publish("wiki", "berlin", wiki.target())
	d := w.device("ann", "ann-laptop")
	r := d.denied("wiki")
	var list []chain.Record
	eventually(t, "the refusal is in the audit", func() bool { list = w.records(chain.Denied); return len(list) > 0 })
	if len(list) != 1 || string(list[0].Receipt) != r.Id || len(list[0].Reasons) == 0 {
		t.Errorf("records: %+v, receipt %s", list, r.Id)
	}
	for range 20 {
		d.denied("wiki")
	}
	if n := len(w.records(chain.Denied)); n != 1 {
		t.Errorf("20 more refusals became %d records within a minute, want 1", n)
	}
}
