// Package grant holds the three messages by which a connector decides alone: the
// assignment (what it may dial), the grant (who may use which app through it) and the
// liveness statement (how long all that holds). Each travels as a proto/seal envelope of
// its own domain; Open functions verify first and parse then, and refuse an unknown
// critical field or a newer constraints version (decisions rules 6, 7, 9).
//
// The broker seals, connectors and clients open. The package is pure: no clock, no I/O.
// Times are Unix milliseconds of the broker's clock.
//
// Grant fields (proto/tlv numbers; "!" critical):
//
//	1! constraints version   2! grant id        3! receipt         4! session id
//	5! user id               6! peer kind       7! peer identity key id (32 bytes)
//	8! app id                9  app name       10! port range (network, first, last) *
//	11! verb *              12! connector id *  13! not before     14! hard end
//	15! outage mode         16! outage grace    17  rate limit      18  flow limit
//	19  opens a minute      20  idle limit
//
// A field with * may repeat. Fields 17 to 20 are not critical: they bound how much is used
// of what the other fields allow, and open nothing. A connector that is older than one of
// them serves without it, where a critical field would make an update of the broker close
// every app behind it.
package grant
