// Package enroll guards how a machine gets into the registry without a person: join tokens
// for connectors and relays, and the rule by which an expired certificate may be renewed.
//
// A token is a text for one paste. The store keeps only the SHA-256 of its secret, so a
// stolen database opens nothing. A one-time token serves one key, also when two machines
// show it at the same moment; the same machine may show it again, because the answer to its
// first try may have been lost. A site key serves many machines of one site.
//
// The admin API makes and revokes tokens, the control API redeems them with the proof that
// the caller holds the key that it enrols. The package issues no certificate and opens no
// connection. An Enroller has no state of its own and is safe for concurrent use.
package enroll
