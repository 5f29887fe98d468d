//go:build !race

package link_test

// raceOn says that the race detector slows every byte down tenfold.
const raceOn = false
