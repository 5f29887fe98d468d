package adminapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/broker/audit"
	adminv1 "github.com/postern-zt/postern/proto/admin/v1"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// exportChunk is how much of an export goes into one message.
const exportChunk = 256 << 10

// recordLate writes down an act that has taken something away: it is in force already.
func (a *API) recordLate(ctx context.Context, e audit.Event) {
	e.Kind = chain.Changed
	if act, ok := actorOf(ctx); ok {
		e.Actor = act.User
		if act.Local {
			e.Details = withDetail(e.Details, "actor", "root on the broker's host")
		}
	}
	a.cfg.Audit.AppendBestEffort(e)
	bounded, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	if err := a.cfg.Ledger.Flush(bounded); err != nil {
		a.log.WarnContext(ctx, "revocation in force but not stored yet", "error", err)
	}
}

type records struct{ *API }

func (s records) Search(ctx context.Context, req *connect.Request[adminv1.SearchRequest]) (*connect.Response[adminv1.SearchResponse], error) {
	q, err := s.query(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	found, next, err := s.cfg.Audit.Search(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &adminv1.SearchResponse{}
	for _, f := range found {
		out.Records = append(out.Records, s.recordView(ctx, f))
	}
	if next != (audit.Position{}) {
		out.Next = next.String()
	}
	return connect.NewResponse(out), nil
}

func (s records) query(ctx context.Context, m *adminv1.SearchRequest) (audit.Query, error) {
	q := audit.Query{Kind: audit.Kind(m.Kind), Limit: int(m.Page.GetSize())}
	if m.Page.GetToken() != "" {
		before, err := audit.ParsePosition(m.Page.GetToken())
		if err != nil {
			return q, badRequest("page: %v", err)
		}
		q.Before = before
	}
	if m.User != "" {
		u, err := s.cfg.Directory.Find(ctx, m.User)
		if err != nil {
			return q, err
		}
		q.User = u.ID
	}
	if m.App != "" {
		app, err := s.app(m.App)
		if err != nil {
			return q, err
		}
		q.App = app.ID
	}
	if m.Receipt != "" {
		r, err := ids.ParseReceipt(m.Receipt)
		if err != nil {
			return q, err
		}
		q.Receipt = r
	}
	if m.Device != "" {
		d, err := s.device(ctx, m.Device)
		if err != nil {
			return q, err
		}
		q.Device = d.ID
	}
	if m.FromMs > 0 {
		q.From = time.UnixMilli(m.FromMs)
	}
	if m.ToMs > 0 {
		q.To = time.UnixMilli(m.ToMs)
	}
	return q, nil
}

func (s records) recordView(ctx context.Context, f audit.Found) *adminv1.AuditRecord {
	v := &adminv1.AuditRecord{
		Writer: f.Writer, Seq: f.Seq, TimeMs: f.TimeMS, Kind: string(f.Kind), Device: string(f.Device),
		Receipt: string(f.Receipt), Json: string(f.Line), Text: recordText(f),
	}
	if f.User != "" {
		v.User = s.userName(ctx, f.User)
	}
	if f.App != "" {
		v.App = s.appName(f.App)
	}
	v.Actor = f.Details["actor"]
	if f.Actor != "" {
		v.Actor = s.userName(ctx, f.Actor)
	}
	return v
}

// recordText says a record in a few words.
func recordText(f audit.Found) string {
	text := f.Decision
	for _, r := range f.Reasons {
		text += " " + r
	}
	for _, k := range []string{"what", "cause", "network", "port", "carrier", "to_app", "from_app", "reason", "app", "group", "login", "by", "idp", "limit"} {
		if v := f.Details[k]; v != "" {
			text += " " + k + "=" + v
		}
	}
	if f.Count > 1 {
		text += fmt.Sprintf(" (%d times)", f.Count)
	}
	if f.Inexact {
		text += " (inexact)"
	}
	return text
}

func (s records) Verify(ctx context.Context, _ *connect.Request[adminv1.VerifyRequest]) (*connect.Response[adminv1.VerifyResponse], error) {
	trust, err := s.cfg.Installation.AuditTrust(ctx)
	if err != nil {
		return nil, err
	}
	report, err := s.cfg.Audit.Verify(ctx, trust)
	if err != nil {
		return nil, err
	}
	out := &adminv1.VerifyResponse{Ok: report.OK(), Records: report.Records}
	for _, w := range report.Writers {
		out.Writers = append(out.Writers, w.Head.Writer)
		out.Chains = append(out.Chains, &adminv1.ChainState{
			Writer: w.Writer, Records: w.Records, Last: w.Head.Seq, Signed: w.Signed,
			Connector: w.Connector, OwnSigned: w.OwnSigned, OwnKey: w.OwnKey,
		})
	}
	if len(report.Breaks) > 0 {
		out.Problem = report.Breaks[0].Error()
	}
	return connect.NewResponse(out), nil
}

// Export streams all chains with their signed segments, as one file that verifies offline.
func (s records) Export(ctx context.Context, _ *connect.Request[adminv1.ExportRequest], out *connect.ServerStream[adminv1.ExportResponse]) error {
	if err := s.cfg.Audit.SignSegments(ctx, true); err != nil {
		return err
	}
	w := &exporter{out: out}
	if err := s.cfg.Audit.Export(ctx, w, "", 0); err != nil {
		return err
	}
	return w.flush()
}

// exporter sends what is written to it in chunks.
type exporter struct {
	out *connect.ServerStream[adminv1.ExportResponse]
	buf bytes.Buffer
}

var _ io.Writer = (*exporter)(nil)

// Write buffers p and sends full chunks.
func (e *exporter) Write(p []byte) (int, error) {
	e.buf.Write(p)
	if e.buf.Len() < exportChunk {
		return len(p), nil
	}
	return len(p), e.flush()
}

func (e *exporter) flush() error {
	if e.buf.Len() == 0 {
		return nil
	}
	err := e.out.Send(&adminv1.ExportResponse{Lines: bytes.Clone(e.buf.Bytes())})
	e.buf.Reset()
	return err
}

func (s records) GetDecision(ctx context.Context, req *connect.Request[adminv1.DecisionRef]) (*connect.Response[adminv1.Decision], error) {
	id, err := ids.ParseReceipt(req.Msg.Receipt)
	if err != nil {
		return nil, err
	}
	rec, err := s.cfg.Decisions.Recorded(ctx, id)
	if err != nil {
		return nil, err
	}
	return respond(s.decisionView(ctx, rec), nil)
}

type system struct{ *API }

func (s system) Status(ctx context.Context, _ *connect.Request[adminv1.StatusRequest]) (*connect.Response[adminv1.StatusResponse], error) {
	problems := s.cfg.Installation.NotReady(ctx)
	return connect.NewResponse(&adminv1.StatusResponse{
		Version: s.cfg.Version, BrokerId: string(s.cfg.Broker), Url: s.cfg.Installation.URL(), Ready: len(problems) == 0,
		NotReady: problems, Suffixes: s.cfg.Catalog.Current().Suffixes(),
	}), nil
}

func (s system) Backup(ctx context.Context, req *connect.Request[adminv1.BackupRequest]) (*connect.Response[adminv1.BackupResponse], error) {
	if err := s.record(ctx, what("backup", "name", req.Msg.Name)); err != nil {
		return nil, err
	}
	path, size, err := s.cfg.Installation.Backup(ctx, req.Msg.Name)
	return respond(&adminv1.BackupResponse{Path: path, Bytes: size}, err)
}
