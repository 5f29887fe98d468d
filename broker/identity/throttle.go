package identity

import (
	"math"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Throttling of guesses. Each key (an account, an address) has a score that grows by one
// with each failure and halves every throttleHalfLife. Above the free score the key is shut
// for a time that doubles with each further failure, up to the most. Accounts are shut only
// briefly, because anybody can fail in Ann's name; addresses for longer.
const (
	throttleHalfLife = 10 * time.Minute
	accountFree      = 5
	accountMost      = time.Minute
	addressFree      = 20
	addressMost      = 15 * time.Minute
	// An office behind one address starts many sign-ins; this only stops a flood.
	startFree = 300
	startMost = time.Minute
	// throttleKeys bounds the memory: about 2 MiB. Above it the calmest keys are forgotten.
	throttleKeys = 16384
)

// startKey counts the sign-ins that an address begins.
func startKey(addr netip.Addr) string { return "s:" + addressKey(addr) }

// throttle counts failures. It is safe for concurrent use.
type throttle struct {
	mu   sync.Mutex
	keys map[string]*strikes
}

type strikes struct {
	score float64
	at    time.Time // of score
	until time.Time // shut until
}

func newThrottle() *throttle { return &throttle{keys: map[string]*strikes{}} }

// accountKey is the same for each way to write a login, known or not.
func accountKey(login string) string {
	return "a:" + hashKey(strings.ToLower(strings.TrimSpace(login)))
}

// addressKey groups IPv6 addresses by /64, which one host may hold as a whole.
func addressKey(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return "n:" + p.String()
		}
	}
	return "n:" + addr.String()
}

// shut reports whether any of the keys has to wait.
func (t *throttle) shut(now time.Time, keys ...string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		if s, ok := t.keys[k]; ok && now.Before(s.until) {
			return true
		}
	}
	return false
}

// failed counts a failure for each key.
func (t *throttle) failed(now time.Time, keys ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		s := t.keyLocked(now, k)
		s.score = s.decayed(now) + 1
		s.at = now
		free, most := limitsOf(k)
		s.until = now.Add(penalty(s.score-free, most))
	}
}

// succeeded forgets the failures of an account; an address keeps them, else one valid
// account would let its owner guess others without end.
func (t *throttle) succeeded(account string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.keys, account)
}

func (t *throttle) keyLocked(now time.Time, k string) *strikes {
	s, ok := t.keys[k]
	if !ok {
		if len(t.keys) >= throttleKeys {
			t.forgetLocked(now)
		}
		s = &strikes{at: now}
		t.keys[k] = s
	}
	return s
}

// forgetLocked makes room: first the keys that have decayed, then any that are not shut,
// then any.
func (t *throttle) forgetLocked(now time.Time) {
	for _, level := range []float64{0.5, math.Inf(1)} {
		for k, s := range t.keys {
			if s.decayed(now) < level && !now.Before(s.until) {
				delete(t.keys, k)
			}
		}
		if len(t.keys) < throttleKeys {
			return
		}
	}
	for k := range t.keys {
		delete(t.keys, k)
		if len(t.keys) < throttleKeys*7/8 {
			return
		}
	}
}

func (s *strikes) decayed(now time.Time) float64 {
	age := now.Sub(s.at)
	if age <= 0 {
		return s.score
	}
	return s.score * math.Exp2(-float64(age)/float64(throttleHalfLife))
}

func limitsOf(key string) (free float64, most time.Duration) {
	switch key[:2] {
	case "a:":
		return accountFree, accountMost
	case "s:":
		return startFree, startMost
	default:
		return addressFree, addressMost
	}
}

// penalty is 1 s for the first failure over the free ones, then 2, 4, 8 ...
func penalty(over float64, most time.Duration) time.Duration {
	if over <= 0 {
		return 0
	}
	seconds := math.Exp2(math.Min(over-1, 20))
	return min(time.Duration(seconds*float64(time.Second)), most)
}
