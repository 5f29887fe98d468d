package posture

import "time"

func (c *Collector) collect(now time.Time) []Fact {
	version, supported := c.system(now)
	return []Fact{version, supported, c.firewall()}
}
