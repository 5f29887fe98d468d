// Package admin runs scripts of `postern admin` and of the commands on the broker's host
// with the real programs. It holds tests alone and nothing imports it. Each script has a
// broker of its own, in its own directory, on a free port of the loopback address, and runs
// beside the others.
package admin
