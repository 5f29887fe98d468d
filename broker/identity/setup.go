package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/postern-zt/postern/broker/directory"
)

// maxFirstUsers bounds the list on the set-up page: a team; more come by other ways.
const maxFirstUsers = 100

// maxSuffix leaves room for names under the suffix within the 253 of DNS.
const maxSuffix = 190

// setupForm is what the owner fills in.
type setupForm struct {
	Code, Login, Name, Mail, Suffix, People string
}

// invitation is one line of the page after the set-up.
type invitation struct {
	Name, Login string
	Link        string
	Code        string
	Error       string
}

// setupDone is shown once: the codes are stored as hashes only.
type setupDone struct {
	Login       string
	InviteURL   string
	Invitations []invitation
	// Warnings are about the name suffix.
	Warnings []string
}

func (s *Service) serveSetup(w http.ResponseWriter, r *http.Request) {
	s.show(w, r, "setup", page{Title: "Set up Postern", Data: setupForm{}})
}

// postSetup makes the bearer of the owner code an owner. The code is taken only when the rest
// of the form is good, so a mistyped password does not cost it.
func (s *Service) postSetup(w http.ResponseWriter, r *http.Request) {
	f := setupForm{
		Code: r.PostForm.Get("code"), Login: strings.ToLower(strings.TrimSpace(r.PostForm.Get("login"))),
		Name: r.PostForm.Get("name"), Mail: r.PostForm.Get("mail"),
		Suffix: strings.ToLower(strings.Trim(strings.TrimSpace(r.PostForm.Get("suffix")), ".")), People: r.PostForm.Get("people"),
	}
	done, err := s.setup(r, f)
	if text, ok := formError(err); ok {
		s.show(w, r, "setup", page{Title: "Set up Postern", Data: f, Error: text, status: http.StatusBadRequest})
		return
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.show(w, r, "setup_done", page{Title: "Postern is set up", Data: done})
}

func (s *Service) setup(r *http.Request, f setupForm) (setupDone, error) {
	ctx := r.Context()
	password, err := newPassword(r, f.Login)
	if err != nil {
		return setupDone{}, err
	}
	warnings, err := s.checkSuffix(f.Suffix)
	if err != nil {
		return setupDone{}, err
	}
	people, err := parsePeople(f.People)
	if err != nil {
		return setupDone{}, err
	}
	if err := s.takeCode(r, kindOwner, f.Code, func(Record) error { return s.readyForOwner(ctx, f) }); err != nil {
		return setupDone{}, err
	}
	if err := s.makeOwner(ctx, f, password); err != nil {
		return setupDone{}, err
	}
	if f.Suffix != "" {
		if err := s.cfg.Settings.SetNameSuffix(ctx, f.Suffix); err != nil {
			return setupDone{}, fmt.Errorf("set name suffix: %w", err)
		}
	}
	return setupDone{
		Login: f.Login, InviteURL: s.Issuer() + invitePath, Invitations: s.inviteAll(ctx, people), Warnings: warnings,
	}, nil
}

// takeCode takes a one-time code after ready agrees. Wrong codes count as guesses.
func (s *Service) takeCode(r *http.Request, kind Kind, typed string, ready func(Record) error) error {
	ctx, address := r.Context(), addressKey(remoteAddr(r))
	if s.throttle.shut(s.now(), address) {
		s.recordFailed(r, string(directory.Local), "", ReasonThrottled)
		return ErrCode
	}
	code := parseCode(typed)
	rec, err := s.live(s.store.Record(ctx, kind, hashKey(code.Reveal())))
	if errors.Is(err, ErrNotFound) || code.IsZero() {
		s.throttle.failed(s.now(), address)
		s.recordFailed(r, string(directory.Local), "", reasonCode)
		return ErrCode
	}
	if err != nil {
		return err
	}
	if err := ready(rec); err != nil {
		return err
	}
	if _, err = s.store.TakeRecord(ctx, kind, rec.Key); errors.Is(err, ErrNotFound) {
		return ErrCode
	}
	return err
}

// readyForOwner finds problems before the code is spent, and records what the code will do:
// a set-up that cannot be recorded does not happen.
func (s *Service) readyForOwner(ctx context.Context, f setupForm) error {
	if err := directory.CheckLocal(f.Login, f.Name, f.Mail); err != nil {
		return err
	}
	known, err := s.dir.UserByLogin(ctx, f.Login)
	if err != nil && !errors.Is(err, directory.ErrNotFound) {
		return err
	}
	return s.recordOwner(ctx, f, known)
}

// makeOwner creates the owner, or gives a local user with this login the role, a new
// password and access again: this is also the way back in after "recover".
func (s *Service) makeOwner(ctx context.Context, f setupForm, password Secret) error {
	u, err := s.dir.UserByLogin(ctx, f.Login)
	if errors.Is(err, directory.ErrNotFound) {
		u, err = s.dir.CreateLocal(ctx, f.Login, f.Name, f.Mail)
	}
	if err != nil {
		return err
	}
	if _, err := s.dir.Enable(ctx, u.ID); err != nil {
		return err
	}
	if _, err := s.dir.SetRole(ctx, u.ID, directory.RoleOwner); err != nil {
		return err
	}
	s.throttle.succeeded(accountKey(f.Login))
	return s.SetPassword(ctx, u.ID, password)
}

// person is one line of the list of first users.
type person struct{ login, name, mail string }

// parsePeople reads "login", "login mail" or "login Full Name mail", one person per line.
func parsePeople(text string) ([]person, error) {
	var people []person
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		p := person{login: fields[0]}
		rest := fields[1:]
		if n := len(rest); n > 0 && strings.Contains(rest[n-1], "@") {
			p.mail, rest = strings.Trim(rest[n-1], "<>"), rest[:n-1]
		}
		p.name = strings.Join(rest, " ")
		people = append(people, p)
	}
	if len(people) > maxFirstUsers {
		return nil, fmt.Errorf("%w: at most %d people at once", directory.ErrInvalid, maxFirstUsers)
	}
	return people, nil
}

// inviteAll creates what can be created; the page names what could not.
func (s *Service) inviteAll(ctx context.Context, people []person) []invitation {
	var list []invitation
	seen := map[string]bool{}
	for _, p := range people {
		login := strings.ToLower(p.login)
		if seen[login] {
			list = append(list, invitation{Login: p.login, Error: p.login + " stands here twice."})
			continue
		}
		seen[login] = true
		u, code, err := s.inviteFirst(ctx, p)
		if err != nil {
			text, ok := formError(err)
			if !ok {
				s.log.ErrorContext(ctx, "first user not created", "error", err)
				text = "could not be created, see the broker's log"
			}
			list = append(list, invitation{Login: p.login, Error: text})
			continue
		}
		list = append(list, invitation{
			Name: u.Name, Login: u.Login, Link: s.InviteLink(code).Reveal(), Code: code.Reveal(),
		})
	}
	return list
}

// inviteFirst creates one of the first users.
func (s *Service) inviteFirst(ctx context.Context, p person) (directory.User, Code, error) {
	if err := directory.CheckLocal(strings.ToLower(p.login), p.name, p.mail); err != nil {
		return directory.User{}, Code{}, err
	}
	if err := s.recordGiven(ctx, "", map[string]string{"what": "create user", "login": strings.ToLower(p.login), "by": "set-up"}); err != nil {
		return directory.User{}, Code{}, err
	}
	return s.CreateUser(ctx, p.login, p.name, p.mail)
}

// checkSuffix accepts an empty suffix or a domain name, and warns of some.
func (s *Service) checkSuffix(suffix string) (warnings []string, err error) {
	if suffix == "" {
		return nil, nil
	}
	if len(suffix) > maxSuffix {
		return nil, fmt.Errorf("%w: the name suffix is too long", directory.ErrInvalid)
	}
	if warnings, err = s.cfg.Settings.CheckNameSuffix(suffix); err != nil {
		return nil, fmt.Errorf("%w: the name suffix %q cannot be used: %w", directory.ErrInvalid, displayName(suffix), err)
	}
	return warnings, nil
}

// newPassword reads the two password fields of a form.
func newPassword(r *http.Request, login string) (Secret, error) {
	password := NewSecret(r.PostForm.Get("password"))
	if password.Reveal() != r.PostForm.Get("again") {
		return Secret{}, fmt.Errorf("%w: the two entries differ", ErrPassword)
	}
	return password, checkNewPassword(password, login)
}

// formError returns the sentence for errors that the person at the form can mend.
func formError(err error) (string, bool) {
	if errors.Is(err, directory.ErrExists) {
		return "There is a user with this login already.", true // the rest is the database's
	}
	for _, mine := range []error{ErrCode, ErrPassword, directory.ErrInvalid} {
		if errors.Is(err, mine) {
			text := err.Error()
			return strings.ToUpper(text[:1]) + text[1:] + ".", true
		}
	}
	return "", false
}
