package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/postern-zt/postern/broker/adminapi"
	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/platform/ipc"
	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/ids"
)

// socketMode lets only the broker's own user and root in; the kernel's word is checked too.
const socketMode = 0o600

// errBackupName says that a backup's name would leave its folder.
var errBackupName = errors.New("a backup is named by a plain file name")

func (b *Broker) openAdmin(context.Context) error {
	b.adminAPI = adminapi.New(adminapi.Config{
		Identity: b.identity, Directory: b.dir, Catalog: b.catalog, Registry: b.registry, Enroller: b.enroller,
		Sessions: b.sessions, Ledger: b.ledger, Decisions: b.decide, Revisions: b.store, Authorize: b.auth, Audit: b.audit,
		Live: b.api, Installation: b, BuiltinRelay: b.relayRow.ID, Broker: b.id, Version: b.version, Log: b.log,
	})
	return nil
}

// AuditTrust is what the audit is verified by.
func (b *Broker) AuditTrust(ctx context.Context) (audit.Trust, error) {
	return b.auditTrust(ctx, audit.Trust{})
}

// control serves the control plane, and administration for owners who are signed in on an
// enrolled device.
func (b *Broker) control() http.Handler {
	admin := b.adminAPI.Handler()
	return b.api.Handler(adminapi.Prefix, func(user ids.UserID, w http.ResponseWriter, r *http.Request) {
		admin.ServeHTTP(w, r.WithContext(adminapi.WithActor(r.Context(), adminapi.Actor{User: user})))
	})
}

// serveAdmin serves administration on the local socket, for root and the broker's own user.
func (b *Broker) serveAdmin(ctx context.Context) error {
	if err := paths.SharedDir(filepath.Dir(b.cfg.AdminSocket)); err != nil && !strings.HasPrefix(b.cfg.AdminSocket, b.cfg.DataDir) {
		return fmt.Errorf("admin socket: %w", err)
	}
	l, err := ipc.Listen(ctx, b.cfg.AdminSocket, socketMode)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return serveHTTP(ctx, l, localOnly(b.adminAPI.Handler()))
}

// localOnly lets in whom the kernel names as root or as ourselves.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := ipc.PeerFrom(r.Context())
		if !ok || peer.UID != 0 && int(peer.UID) != os.Geteuid() {
			http.Error(w, "only root may administer on this socket", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r.WithContext(adminapi.WithActor(r.Context(), adminapi.Actor{Local: true})))
	})
}
