package identity

import (
	"net/http"

	"github.com/postern-zt/postern/proto/ids"
)

func (s *Service) serveInvite(w http.ResponseWriter, r *http.Request) {
	s.show(w, r, "invite", page{Title: "Choose your password"})
}

// postInvite sets the password of the person who was invited. The code is taken only
// together with a password that is accepted.
func (s *Service) postInvite(w http.ResponseWriter, r *http.Request) {
	login, err := s.acceptInvite(r)
	if text, ok := formError(err); ok {
		s.show(w, r, "invite", page{Title: "Choose your password", Error: text, Data: r.PostForm.Get("code"), status: http.StatusBadRequest})
		return
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.message(w, r, http.StatusOK, "Your password is set",
		"Your login is "+login+". On your computer run: postern up '"+s.cfg.JoinURL+"'")
}

func (s *Service) acceptInvite(r *http.Request) (login string, err error) {
	password, err := newPassword(r, "")
	if err != nil {
		return "", err
	}
	var user ids.UserID
	err = s.takeCode(r, kindInvite, r.PostForm.Get("code"), func(rec Record) error {
		u, err := s.localUser(r.Context(), rec.User)
		if err != nil {
			return err
		}
		if u.Disabled {
			return ErrCode
		}
		user, login = u.ID, u.Login
		if err := checkNewPassword(password, u.Login); err != nil {
			return err
		}
		return s.recordGiven(r.Context(), user, map[string]string{"what": "set password", "by": "invitation"})
	})
	if err != nil {
		return "", err
	}
	s.throttle.succeeded(accountKey(login))
	return login, s.SetPassword(r.Context(), user, password)
}
