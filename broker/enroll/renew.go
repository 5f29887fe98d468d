package enroll

import (
	"errors"
	"fmt"
	"time"

	"github.com/postern-zt/postern/broker/registry"
)

// DefaultRenewFor is how long after its end a certificate may still be renewed by proof of
// possession of its key (decisions rule 3).
const DefaultRenewFor = 90 * 24 * time.Hour

// ErrTooOld: the certificate ended too long ago to be renewed; the machine enrols again.
var ErrTooOld = errors.New("certificate expired too long ago")

// MayRenew decides whether a machine that has proven to hold its identity key gets a new
// certificate: its row is active and its last certificate ended at most renewFor ago. Zero
// renewFor means DefaultRenewFor. A row that never had a certificate may get its first.
func MayRenew(state registry.State, notAfter time.Time, renewFor time.Duration, now time.Time) error {
	if renewFor == 0 {
		renewFor = DefaultRenewFor
	}
	switch state {
	case registry.Active:
	case registry.Removed:
		return fmt.Errorf("renew: %w", registry.ErrRemoved)
	default:
		return fmt.Errorf("renew: %w", registry.ErrBlocked)
	}
	if !notAfter.IsZero() && now.Sub(notAfter) > renewFor {
		return fmt.Errorf("renew: %w: more than %d days", ErrTooOld, renewFor/(24*time.Hour))
	}
	return nil
}
