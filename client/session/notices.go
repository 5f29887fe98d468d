package session

import (
	"strings"
	"time"
)

const (
	// noticeEvery is how often one app and reason is worth a line (decisions rule 20).
	noticeEvery = 10 * time.Minute
	// maxNotices bounds what is remembered; beyond it everything old is forgotten.
	maxNotices = 1024
)

// Notices keeps a person from being told the same refusal again and again. Its zero value
// has told nothing.
type Notices struct{ told map[string]time.Time }

// Due reports whether the refusal of an app for these reasons is to be told, and notes it.
func (n *Notices) Due(app string, reasons []string, now time.Time) bool {
	key := app + "\x00" + strings.Join(reasons, ",")
	if at, ok := n.told[key]; ok && now.Sub(at) < noticeEvery {
		return false
	}
	if n.told == nil || len(n.told) >= maxNotices {
		n.told = map[string]time.Time{}
	}
	n.told[key] = now
	return true
}
