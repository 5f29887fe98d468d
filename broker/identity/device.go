package identity

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/postern-zt/postern/broker/directory"
)

// devicePoll is how often a client may ask whether its code was approved.
const devicePoll = 2 * time.Second

// deviceData is what the page with the code field shows.
type deviceData struct{ UserCode string }

// confirmData is what the page shows on which a person decides about a device.
type confirmData struct {
	Request string
	Device  deviceGrant
	User    string
}

// canonicalUserCode reads a user code as people type it.
func canonicalUserCode(s string) string {
	return strings.NewReplacer("-", "", " ", "").Replace(strings.ToUpper(strings.TrimSpace(s)))
}

func (s *Service) serveDevice(w http.ResponseWriter, r *http.Request) {
	s.show(w, r, "device", page{Title: "Connect a device", Data: deviceData{displayName(r.FormValue("user_code"))}})
}

// postDevice turns a user code into a flow of this browser, which then signs in. Guessing
// codes counts like guessing passwords.
func (s *Service) postDevice(w http.ResponseWriter, r *http.Request) {
	ctx, address := r.Context(), addressKey(remoteAddr(r))
	typed := r.PostForm.Get("user_code")
	rec, err := Record{}, error(ErrNotFound)
	if !s.throttle.shut(s.now(), address) {
		rec, err = s.live(s.store.RecordByAlt(ctx, kindDevice, hashKey(canonicalUserCode(typed))))
	}
	if errors.Is(err, ErrNotFound) {
		s.throttle.failed(s.now(), address)
		s.recordFailed(r, string(directory.Local), "", reasonCode)
		s.show(w, r, "device", page{
			Title: "Connect a device", Data: deviceData{displayName(typed)}, status: http.StatusBadRequest,
			Error: "This code is not known or has expired, or there were too many attempts. The device shows the current one.",
		})
		return
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id, err := s.startFlow(ctx, flow{Browser: s.browserOf(r), Device: rec.Key})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	http.Redirect(w, r, loginPath+"?request="+id, http.StatusSeeOther)
}

func (s *Service) deviceByKey(ctx context.Context, key string) (deviceGrant, error) {
	rec, err := s.live(s.store.Record(ctx, kindDevice, key))
	if err != nil {
		return deviceGrant{}, err
	}
	g, err := decode[deviceGrant](rec)
	if err == nil && (g.Denied || g.Proof != nil) {
		err = ErrNotFound
	}
	return g, err
}

// provenDevice returns the flow of this browser that has signed in, and its device.
func (s *Service) provenDevice(r *http.Request, id string) (flow, deviceGrant, error) {
	f, err := s.ownFlow(r.Context(), id, s.browserOf(r))
	if err != nil {
		return flow{}, deviceGrant{}, err
	}
	if f.Device == "" || f.Proof == nil {
		return flow{}, deviceGrant{}, ErrNotFound
	}
	g, err := s.deviceByKey(r.Context(), f.Device)
	return f, g, err
}

// serveConfirm shows what asks for access, from where, and the code to compare.
func (s *Service) serveConfirm(w http.ResponseWriter, r *http.Request) {
	id := r.FormValue("request")
	f, g, err := s.provenDevice(r, id)
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	u, err := s.usableUser(r.Context(), f.Proof.User)
	if err != nil {
		s.noFlow(w, r, errors.Join(err, ErrNotFound))
		return
	}
	name := u.Name
	if u.Login != "" && u.Login != u.Name {
		name += " (" + u.Login + ")"
	}
	s.show(w, r, "confirm", page{Title: "Is this your device?", Data: confirmData{Request: id, Device: g, User: name}})
}

// postConfirm notes the decision. Anything but "allow" denies.
func (s *Service) postConfirm(w http.ResponseWriter, r *http.Request) {
	id := r.PostForm.Get("request")
	f, _, err := s.provenDevice(r, id)
	if err != nil {
		s.noFlow(w, r, err)
		return
	}
	if _, err := s.store.TakeRecord(r.Context(), kindFlow, hashKey(id)); err != nil {
		s.noFlow(w, r, err)
		return
	}
	allowed := r.PostForm.Get("decision") == "allow"
	if err := s.decideDevice(r.Context(), f, allowed); err != nil {
		s.noFlow(w, r, err)
		return
	}
	if !allowed {
		s.message(w, r, http.StatusOK, "The device was refused", "It gets no access. If you did not start this yourself, tell your administrator: somebody may have sent you a code.")
		return
	}
	s.message(w, r, http.StatusOK, "The device is signed in", "You can close this page and go back to the device.")
}

func (s *Service) decideDevice(ctx context.Context, f flow, allowed bool) error {
	_, err := s.store.ChangeRecord(ctx, kindDevice, f.Device, func(r *Record) error {
		g, err := decode[deviceGrant](*r)
		if err != nil {
			return err
		}
		if g.Denied || g.Proof != nil || !s.now().Before(r.Expires) {
			return ErrNotFound
		}
		g.Denied = !allowed
		if allowed {
			g.Proof = f.Proof
			r.User = f.Proof.User
		}
		r.Data, err = json.Marshal(g)
		return err
	})
	return err
}
