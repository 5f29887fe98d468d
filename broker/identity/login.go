package identity

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/postern-zt/postern/broker/directory"
)

// Authentication context of a password sign-in.
const (
	acrPassword = "urn:postern:acr:password"
	amrPassword = "pwd"
)

// signInFailed is the one text for each failed password sign-in, and signInThrottled the one
// for each that was not looked at: accounts that do not exist are throttled like others.
const (
	signInFailed    = "Login or password is wrong."
	signInThrottled = "There were too many attempts. Wait a minute before you try again."
)

// loginData is what the sign-in page shows.
type loginData struct {
	Request string
	Login   string
	Issuers []Issuer
	// Device is set when the sign-in approves a device code.
	Device *deviceGrant
}

func (s *Service) serveLogin(w http.ResponseWriter, r *http.Request) {
	id := r.FormValue("request")
	f, err := s.ownFlow(r.Context(), id, s.browserOf(r))
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	if f.Proof != nil {
		http.Redirect(w, r, nextPage(id, f), http.StatusSeeOther)
		return
	}
	s.showLogin(w, r, id, f, page{Data: f.LoginHint})
}

func (s *Service) noFlow(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNotFound) {
		s.gone(w, r)
		return
	}
	s.fail(w, r, err)
}

// showLogin shows the sign-in page; p.Data is the login to fill in.
func (s *Service) showLogin(w http.ResponseWriter, r *http.Request, id string, f flow, p page) {
	issuers, err := s.Issuers(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	data := loginData{Request: id, Issuers: issuers}
	data.Login, _ = p.Data.(string)
	if f.Device != "" {
		g, err := s.deviceByKey(r.Context(), f.Device)
		if err != nil {
			s.noFlow(w, r, err)
			return
		}
		data.Device = &g
	}
	p.Title, p.Data, p.formTarget = "Sign in", data, loopbackOrigin(f.Redirect)
	s.show(w, r, "login", p)
}

func (s *Service) postLogin(w http.ResponseWriter, r *http.Request) {
	id := r.PostForm.Get("request")
	f, err := s.ownFlow(r.Context(), id, s.browserOf(r))
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	login := r.PostForm.Get("login")
	u, err := s.checkPassword(r, login, NewSecret(r.PostForm.Get("password")))
	var refused *Error
	if errors.As(err, &refused) {
		s.showLogin(w, r, id, f, page{Error: signInText(refused), Data: login, status: http.StatusUnauthorized})
		return
	}
	if err == nil {
		err = s.prove(r.Context(), id, proof{User: u.ID, ACR: acrPassword, AMR: []string{amrPassword}, AuthTime: s.now()})
	}
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	w.Header().Set("Content-Security-Policy", policyFor(loopbackOrigin(f.Redirect)))
	http.Redirect(w, r, nextPage(id, f), http.StatusSeeOther)
}

// signInText is what people read; all other reasons are for metrics and the log.
func signInText(refused *Error) string {
	if refused.Reason == ReasonThrottled {
		return signInThrottled
	}
	return signInFailed
}

// checkPassword returns the local user with this login and password. Each refusal is an
// *Error, whose signInText people get.
func (s *Service) checkPassword(r *http.Request, login string, password Secret) (directory.User, error) {
	start := time.Now()
	u, err := s.passwordSignIn(r.Context(), login, password, addressKey(remoteAddr(r)))
	s.metrics.AuthLatency(time.Since(start))
	if err != nil {
		s.metrics.AuthAttempt(string(directory.Local), "failure")
		s.metrics.AuthFailure(ReasonOf(err))
		s.recordFailed(r, string(directory.Local), u.ID, ReasonOf(err))
		s.log.InfoContext(r.Context(), "sign-in refused", "reason", string(ReasonOf(err)))
		return directory.User{}, err
	}
	s.metrics.AuthAttempt(string(directory.Local), "success")
	return u, nil
}

// passwordSignIn returns the user with a refusal too, when there is one: for the record.
func (s *Service) passwordSignIn(ctx context.Context, login string, password Secret, address string) (directory.User, error) {
	account := accountKey(login)
	if s.throttle.shut(s.now(), account, address) {
		return directory.User{}, refuse(ReasonThrottled, nil)
	}
	u, encoded, err := s.passwordOf(ctx, login)
	if err != nil {
		return directory.User{}, err
	}
	good, err := s.hasher.verify(ctx, password, encoded)
	if err != nil {
		return directory.User{}, err
	}
	if !good || !u.Usable() {
		s.throttle.failed(s.now(), account, address)
		return u, refuse(ReasonUnverified, nil)
	}
	s.throttle.succeeded(account)
	return u, nil
}

// passwordOf looks a login up. Nobody and nothing stored read as an empty hash, which costs
// the same to check. Both queries run in every case.
func (s *Service) passwordOf(ctx context.Context, login string) (directory.User, string, error) {
	u, err := s.dir.UserByLogin(ctx, login)
	if err != nil && !errors.Is(err, directory.ErrNotFound) {
		return directory.User{}, "", err
	}
	r, err := s.store.Record(ctx, kindPassword, string(u.ID))
	if errors.Is(err, ErrNotFound) {
		return u, "", nil
	}
	if err != nil {
		return directory.User{}, "", err
	}
	encoded, err := decode[string](r)
	return u, encoded, err
}
