package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// climb tries the rungs from the best down. What an earlier rung left is taken
// back when another one is used.
func (h *Host) climb(ctx context.Context, cfg Config) (Status, error) {
	content, err := readResolvConf(h.cfg.ResolvConf)
	if err != nil {
		return Status{}, err
	}
	original, had, isNew := split(content.bytes)
	if h.cfg.BusAddress != busNone && usesResolved(original) {
		status, err := h.setResolved(ctx, cfg)
		if err == nil {
			return status, h.dropBlock(content)
		}
		h.log.Debug("rung does not work", "rung", string(RungResolved), "error", err)
	}
	return h.setResolvConf(cfg, content, original, isNew || !content.exists && !had)
}

// inPlace says that our configuration is where we put it. It only reads, so that
// looking does not flush anybody's cache.
func (h *Host) inPlace(ctx context.Context) bool {
	content, err := readResolvConf(h.cfg.ResolvConf)
	if err != nil {
		return false
	}
	original, had, _ := split(content.bytes)
	switch h.status.Rung {
	case RungResolved:
		return !had && usesResolved(original) && h.resolvedInPlace(ctx)
	case RungResolvConf:
		isOurs := bytes.HasPrefix(content.bytes, block(h.want.Server.Addr(), false)) ||
			bytes.HasPrefix(content.bytes, block(h.want.Server.Addr(), true))
		moveUp := h.cfg.BusAddress != busNone && usesResolved(original) // the service may be back
		return isOurs && !moveUp && slices.Equal(h.status.Upstreams, h.upstreams(original))
	default:
		return false
	}
}

func (h *Host) upstreams(original []byte) []netip.AddrPort {
	return slices.DeleteFunc(nameservers(original), func(a netip.AddrPort) bool { return a == h.want.Server })
}

// usesResolved says that programs on this host ask systemd-resolved.
func usesResolved(original []byte) bool {
	return slices.ContainsFunc(nameservers(original), func(a netip.AddrPort) bool {
		return a.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 54})
	})
}

func (h *Host) setResolvConf(cfg Config, content resolvConf, original []byte, isNew bool) (Status, error) {
	if cfg.Server.Port() != dnsPort {
		return Status{}, fmt.Errorf("resolv.conf cannot name port %d; the server must listen on %d", cfg.Server.Port(), dnsPort)
	}
	if err := content.replace(append(block(cfg.Server.Addr(), isNew), original...)); err != nil {
		return Status{}, fmt.Errorf("put our server into %s: %w", h.cfg.ResolvConf, err)
	}
	upstreams := h.upstreams(original)
	return Status{Rung: RungResolvConf, Upstreams: upstreams, Sentence: resolvConfSentence(h.cfg.ResolvConf, upstreams)}, nil
}

func resolvConfSentence(path string, upstreams []netip.AddrPort) string {
	s := fmt.Sprintf("%s names our server first, so it sees every question of this machine", path)
	if len(upstreams) == 0 {
		return s + "; there is no other server to which it could pass other names"
	}
	return fmt.Sprintf("%s and passes other names on to %s; with systemd-resolved it would see published names only", s, upstreams[0].Addr())
}

// dropBlock takes our lines out of the file, and the file away if it was ours.
func (h *Host) dropBlock(content resolvConf) error {
	original, had, isNew := split(content.bytes)
	switch {
	case !had:
		return nil
	case isNew && len(original) == 0:
		return content.remove()
	default:
		return content.replace(original)
	}
}

func (h *Host) restore(ctx context.Context, iface string) error {
	var errs []error
	if h.cfg.BusAddress != busNone {
		errs = append(errs, h.revertResolved(ctx, iface))
	}
	content, err := readResolvConf(h.cfg.ResolvConf)
	if err == nil {
		err = h.dropBlock(content)
	}
	return errors.Join(append(errs, err)...)
}
