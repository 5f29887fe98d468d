package broker

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/broker/reverify"
	"github.com/postern-zt/postern/broker/store"
	"github.com/postern-zt/postern/broker/trust"
	"github.com/postern-zt/postern/platform/daemon"
	"github.com/postern-zt/postern/platform/ipc"
)

const (
	sessionsEvery = time.Minute
	presenceEvery = 15 * time.Second
	readyTimeout  = 3 * time.Second
	shutdownTime  = 2 * time.Second
)

// trust is the table by which facts count, of the policy in force.
func (b *Broker) trust() trust.Settings { return b.decide.Current().Trust() }

// serveRelay gives a connection to the relay inside this broker.
func (b *Broker) serveRelay(ctx context.Context, conn *tls.Conn) {
	if b.relay == nil {
		conn.Close()
		return
	}
	if err := b.relay.ServeConn(ctx, conn); err != nil {
		b.log.DebugContext(ctx, "relay connection ended", "error", err)
	}
}

// runSessions ends sessions whose time is over.
func (b *Broker) runSessions(ctx context.Context) error {
	tick := time.NewTicker(sessionsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ended, err := b.sessions.EndDue(ctx, time.Now())
		if err != nil {
			b.log.WarnContext(ctx, "sessions not ended", "error", err)
		}
		b.api.SessionsEnded(ended)
	}
}

// runReverify asks the issuers about users whose last confirmation is too old. A user whom
// the issuer no longer confirms is refused by the directory, and the reactor acts on it.
func (b *Broker) runReverify(ctx context.Context) error {
	return reverify.Run(ctx, reverify.Config{
		Sessions: b.sessions, Issuers: b.identity, Log: b.log,
		Interval: func() time.Duration { return reverifyInterval(b.decide.Current(), b.catalog.Current().Apps()) },
	})
}

// noAppsInterval holds while there is no app, so that no class is in use.
const noAppsInterval = 5 * time.Minute

// reverifyInterval is the strictest that the policy asks for the classes in use. Where
// nothing says how long a confirmation lasts, it is the shortest.
func reverifyInterval(rev *policy.Revision, apps []*catalog.App) time.Duration {
	if rev == nil {
		return reverify.Shortest
	}
	var every time.Duration
	for _, app := range apps {
		row, ok := rev.Class(policy.Class(app.Class))
		if !ok {
			return reverify.Shortest
		}
		if d := time.Duration(row.ReVerify); every == 0 || d < every {
			every = d
		}
	}
	if every == 0 {
		return noAppsInterval
	}
	return max(every, reverify.Shortest)
}

// runPresence says that this broker lives.
func (b *Broker) runPresence(ctx context.Context) error {
	started := time.Now()
	tick := time.NewTicker(presenceEvery)
	defer tick.Stop()
	for {
		row := store.Broker{ID: b.id, Name: b.cfg.host(), Version: b.version, StartedAt: started, SeenAt: time.Now()}
		if err := b.store.PutBroker(ctx, row); err != nil && ctx.Err() == nil {
			b.log.WarnContext(ctx, "presence not noted", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// NotReady says what exactly keeps the broker from its work; nothing when it is ready.
func (b *Broker) NotReady(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var out []string
	if err := b.store.Ping(ctx); err != nil {
		out = append(out, "database: "+err.Error())
	}
	if n := b.ledger.Queued(); n > 0 {
		out = append(out, fmt.Sprintf("database: %d revocations are in force but not stored yet", n))
	}
	if n := b.audit.Lost(); n > 0 {
		out = append(out, fmt.Sprintf("audit: %d records were lost because the disk did not take them", n))
	}
	if err := b.reactor.Stale(); err != nil {
		out = append(out, "state: what is in force is older than what is stored: "+err.Error())
	}
	if b.decide.Current() == nil {
		out = append(out, "policy: no revision is in force, everything is denied")
	}
	for _, err := range b.catalog.Current().Broken {
		out = append(out, err.Error())
	}
	return out
}

// localParts serve this machine only: health and metrics, and the admin socket.
func (b *Broker) localParts() []daemon.Part {
	var parts []daemon.Part
	if b.cfg.Health != "off" {
		parts = append(parts, daemon.Part{Name: "health", Run: b.serveHealth})
	}
	if b.cfg.AdminSocket != "" {
		parts = append(parts, daemon.Part{Name: "admin socket", Run: b.serveAdmin})
	}
	return parts
}

func (b *Broker) serveHealth(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", b.cfg.Health)
	if err != nil {
		// Health is no reason not to serve: a second broker on the machine has no port.
		b.log.WarnContext(ctx, "health and metrics are not served", "error", err)
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", b.readyz)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.Handle("GET /metrics", b.metrics.handler(b))
	return serveHTTP(ctx, l, mux)
}

func (b *Broker) readyz(w http.ResponseWriter, r *http.Request) {
	problems := b.NotReady(r.Context())
	w.Header().Set("Content-Type", "application/json")
	if len(problems) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"ready": len(problems) == 0, "not_ready": problems})
}

// serveHTTP serves l until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: readyTimeout, ConnContext: ipc.ConnContext}
	stop := context.AfterFunc(ctx, func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		if srv.Shutdown(bye) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
