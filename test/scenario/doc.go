// Package scenario tells whole-product stories in one process over real sockets on
// loopback: a broker that people set up through its real pages, connectors that joined it
// with a token, apps that count every connection which reaches them, and devices that
// speak the wire formats themselves, so that they can also lie.
//
// The proof that an app was not touched is its own listener: it counts accepted
// connections, and a denied story ends with a count that did not move.
//
// Each test builds its own world; nothing is shared between tests. All files but this one
// are tests; nothing imports the package.
package scenario
