//go:build race

package mux_test

// raceOn says that the race detector is on, under which everything allocates.
const raceOn = true
