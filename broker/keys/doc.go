// Package keys holds the broker's private keys and its certificate authority. The broker's
// root builds one Ring at start; identity, enroll, grants and audit get single keys or the CA
// from it. Private keys rest in the store, sealed with a key-encryption key (KEK) that may lie
// outside of the data directory; this package never writes one in clear, and no private key
// appears in an error, a log line or JSON.
//
// A Ring is safe for concurrent use; keys and the CA are immutable.
package keys
