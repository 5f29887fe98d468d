package link

import "sync"

// chooserNetworks bounds the memory of a Chooser; the oldest network goes first.
const chooserNetworks = 64

// Chooser remembers per network which kind of way worked, so that a network that blocks
// UDP costs its 300 ms once. One serves all links of a client. It is safe for concurrent use.
type Chooser struct {
	mu      sync.Mutex // guards the fields below
	network string
	order   []string // networks, oldest first
	best    map[string]string
}

// NewChooser returns an empty Chooser for an unknown network.
func NewChooser() *Chooser { return &Chooser{best: make(map[string]string)} }

// SetNetwork names the network that the machine is on now ("" is a network like others).
func (c *Chooser) SetNetwork(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.network = name
}

// Won remembers that the dialer's kind was first on the present network.
func (c *Chooser) Won(kind string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.best[c.network]; !known {
		c.order = append(c.order, c.network)
		if len(c.order) > chooserNetworks {
			delete(c.best, c.order[0])
			c.order = c.order[1:]
		}
	}
	c.best[c.network] = kind
}

// Best returns the kind that won last on the present network, or "".
func (c *Chooser) Best() string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.best[c.network]
}
