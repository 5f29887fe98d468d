package identity

import (
	"context"
	"net/http"

	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/broker/directory"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// Auditor writes the audit; *audit.Log has it.
type Auditor interface {
	Append(ctx context.Context, e audit.Event) (audit.Ref, error)
	AppendBestEffort(e audit.Event)
}

// reasonCode is the record's reason for a wrong one-time code. People see ErrCode.
const reasonCode Reason = "code_wrong"

// recordFailed records a sign-in that was refused; equal ones of a minute become one counted
// record. What was typed is not in it: people type passwords into the wrong field. The user is
// there when there is one, which only administrators see.
func (s *Service) recordFailed(r *http.Request, idp string, user ids.UserID, reason Reason) {
	e := chain.Event{Kind: chain.SignInFailed, User: user, Reasons: []string{string(reason)}, Details: map[string]string{"idp": idp}}
	if a := remoteAddr(r); a.IsValid() {
		e.Personal = map[string]string{"address": a.String()}
	}
	s.cfg.Audit.AppendBestEffort(e)
}

// recordGiven records something that gives, before it is done.
func (s *Service) recordGiven(ctx context.Context, user ids.UserID, details map[string]string) error {
	_, err := s.cfg.Audit.Append(ctx, chain.Event{Kind: chain.Changed, User: user, Details: details})
	return err
}

// recordOwner records that the bearer of an owner link becomes an owner.
func (s *Service) recordOwner(ctx context.Context, f setupForm, known directory.User) error {
	details := map[string]string{"what": "make owner", "login": f.Login, "by": "owner link"}
	if f.Suffix != "" {
		details["suffix"] = f.Suffix
	}
	return s.recordGiven(ctx, known.ID, details)
}

// noAudit records nothing: for tests of other things.
type noAudit struct{}

func (noAudit) Append(context.Context, audit.Event) (audit.Ref, error) { return audit.Ref{}, nil }
func (noAudit) AppendBestEffort(audit.Event)                           {}
