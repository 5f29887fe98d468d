// Package statusapi is how `postern-connector status` asks the connector that runs on the
// same machine: one HTTP request over the local socket, one JSON document back. It only
// reads; nothing can be changed here.
//
// Serve answers root and the user that the connector runs as, by the kernel's word, and
// nobody else. Fetch is safe for concurrent use.
package statusapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/paths"
)

const (
	path = "/status"
	// maxAnswer bounds what Fetch reads: some hundred bytes for each of 4096 apps.
	maxAnswer = 4 << 20
	// timeout bounds each side of the one request.
	timeout = 5 * time.Second
	// maxHeader bounds what a caller may send.
	maxHeader = 4 << 10
	// socketMode lets every user connect; who is no owner is refused with a reason.
	socketMode = 0o666
)

// ErrNotRunning says that no connector answers on the socket.
var ErrNotRunning = ipc.ErrNotRunning

// ErrDenied says that the connector does not answer this user.
var ErrDenied = errors.New("the connector answers only root and the user that it runs as")

// Target is where an app is: of a range the first port.
type Target struct {
	Network string `json:"network"`
	Address string `json:"address"`
}

// ErrInUse says that another connector serves the socket.
var ErrInUse = ipc.ErrInUse

// Status is how a connector is, in layers.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Broker  string    `json:"broker"`
	ID      string    `json:"id"`
	// Key names the identity key, which signs the flow records.
	Key    string `json:"key"`
	Site   string `json:"site"`
	Uplink Uplink `json:"uplink"`
	// Live says whether the broker's news is fresh: without it no new flow opens.
	Live   bool    `json:"live"`
	Relays []Relay `json:"relays"`
	Apps   []App   `json:"apps"`
	Grants int     `json:"grants"`
	Flows  int     `json:"flows"`
	// ClockOffsetMS is how far this machine's clock is ahead of the broker's.
	ClockOffsetMS int64 `json:"clock_offset_ms"`
	// CertificateEnds is when the certificate must have been renewed.
	CertificateEnds time.Time `json:"certificate_ends"`
	// AuditHeads are what this connector remembers of the broker's audit and what it shipped to
	// it, AuditProblem says what is gone of the broker's own.
	AuditHeads   []string `json:"audit_heads,omitempty"`
	AuditProblem string   `json:"audit_problem,omitempty"`
}

// Uplink is the control stream.
type Uplink struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Problem   string    `json:"problem,omitempty"`
}

// Relay is one transport to one relay.
type Relay struct {
	ID        string    `json:"id"`
	Transport string    `json:"transport"`
	Up        bool      `json:"up"`
	Since     time.Time `json:"since"`
	Problem   string    `json:"problem,omitempty"`
}

// App is one assigned app by its newest dial.
type App struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Targets []Target `json:"targets"`
	State   string   `json:"state"`
	Code    string   `json:"code,omitempty"`
}

// Serve answers on the socket until ctx ends. Its directory is made if it is missing.
func Serve(ctx context.Context, socket string, status func() Status, log *slog.Logger) error {
	dir := filepath.Dir(socket)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := paths.SharedDir(dir); err != nil {
			return err
		}
	}
	l, err := ipc.Listen(ctx, socket, socketMode)
	if err != nil {
		return fmt.Errorf("status socket: %w", err)
	}
	srv := &http.Server{
		Handler: handler(status), ConnContext: ipc.ConnContext, MaxHeaderBytes: maxHeader,
		ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: timeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // nothing to drain
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status socket: %w", errors.Join(err, srv.Close()))
	}
	return nil
}

func handler(status func() Status) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		p, ok := ipc.PeerFrom(r.Context())
		if !ok || !allowed(p.UID, os.Geteuid()) {
			http.Error(w, ErrDenied.Error(), http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status()) // a caller that has gone needs no answer
	})
	return mux
}

// allowed says who may ask: root, and whom the process belongs to.
func allowed(caller uint32, self int) bool { return caller == 0 || int64(caller) == int64(self) }

// Fetch asks the connector on the socket.
func Fetch(ctx context.Context, socket string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	transport := ipc.Transport(socket)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://connector"+path, http.NoBody)
	if err != nil {
		return Status{}, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return Status{}, denied(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return Status{}, ErrDenied
	default:
		return Status{}, fmt.Errorf("the connector answered %s", resp.Status)
	}
	var st Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&st); err != nil {
		return Status{}, fmt.Errorf("answer of the connector: %w", err)
	}
	return st, nil
}

// denied names the socket that the file system keeps from this user.
func denied(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return ErrDenied
	}
	var op *net.OpError
	if errors.As(err, &op) && errors.Is(op.Err, os.ErrPermission) {
		return ErrDenied
	}
	return err
}
