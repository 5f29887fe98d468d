//go:build race

package flow

// raceEnabled says that sync.Pool drops things at random, so allocations cannot be counted.
const raceEnabled = true
