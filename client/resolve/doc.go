// Package resolve answers DNS questions for published names, and only for those
// under the suffixes that the organisation declared. It also maps the stable index
// of an app to its addresses on this device.
//
// The client's root package runs a Server on an address it owns, or hands packets
// from the user-space stack to Answer. The package must not configure the host
// (platform/dns does) and must not know sessions or grants.
//
// A Table is immutable and swapped whole; a Server may be used from any goroutine.
package resolve
