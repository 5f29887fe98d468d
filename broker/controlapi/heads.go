package controlapi

import (
	"context"
	"time"

	"github.com/postern-zt/postern/broker/audit"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

const (
	// headsEvery is how often a client or connector hears an audit head to remember.
	headsEvery = 10 * time.Minute
	// headsTimeout bounds the reading of heads; without them a stream goes on.
	headsTimeout = 500 * time.Millisecond
	// maxAsked bounds the heads that one caller may ask about.
	maxAsked = 16
)

// heads is what one stream is told of the audit.
type heads struct {
	asked []*controlv1.AuditHead // until they were answered
	next  time.Time
}

func newHeads(req *controlv1.WatchRequest) *heads {
	return &heads{asked: req.Remembered[:min(len(req.Remembered), maxAsked)]}
}

// dueHeads returns what a stream is to be told now; nil for nothing.
func (a *API) dueHeads(ctx context.Context, h *heads) *controlv1.AuditHeads {
	now := a.cfg.Now()
	if now.Before(h.next) {
		return nil
	}
	h.next = now.Add(headsEvery)
	ctx, cancel := context.WithTimeout(ctx, headsTimeout)
	defer cancel()
	out, err := a.readHeads(ctx, h.asked)
	if err != nil {
		a.log.WarnContext(ctx, "audit heads not told", "error", err)
		return nil
	}
	h.asked = nil
	return out
}

func (a *API) readHeads(ctx context.Context, asked []*controlv1.AuditHead) (*controlv1.AuditHeads, error) {
	out := &controlv1.AuditHeads{}
	for _, h := range asked {
		found, archived, err := a.cfg.Audit.Recall(ctx, h.Writer, h.Seq)
		if err != nil {
			return nil, err
		}
		out.Remembered = append(out.Remembered, headView(found, archived))
	}
	own, err := a.cfg.Audit.Own(ctx)
	if err != nil {
		return nil, err
	}
	if own.Seq > 0 {
		out.Head = headView(own, false)
	}
	return out, nil
}

// headView leaves the zero hash out: there is no such record.
func headView(h audit.Head, archived bool) *controlv1.AuditHead {
	v := &controlv1.AuditHead{Writer: h.Writer, Seq: h.Seq, Archived: archived}
	if h.Hash != (audit.Hash{}) {
		v.Hash = h.Hash[:]
	}
	return v
}
