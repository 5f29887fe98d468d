// Package grants keeps what the broker has given away and takes it back. A Ledger issues
// grants, which are durable before they are handed out, revokes them, which is effective
// before it is durable, and writes the signed messages by which connectors know both: the
// assignment (what a connector may dial) and the liveness statements (how long its grants
// hold, except which).
//
// Three rules carry the safety of it (decisions rules 7 and 9):
//
//   - A revocation ends each grant that it matches and that was issued at or before its
//     time. The ledger never gives a grant a time at or before a matching revocation's, and
//     never a revocation a time before a matching grant's, whatever the clock does; so
//     broker, store and connector agree by comparing two numbers.
//   - A grant whose decision began before a matching revocation is refused, even when the
//     two cross in flight: the caller passes the Sequence it saw before it decided.
//   - Revoke takes memory only. Flush or Run bring it to the store; while that fails, the
//     revocations wait in a queue and statements carry them all the same.
//
// The control API calls Issue, Revoke, Statements and Acknowledge; who decides, and who
// pushes messages to connectors, is elsewhere. A Ledger is safe for concurrent use; its state
// is guarded by mu, which is never held during a call of the store. Grants it returns are
// shared and must not be changed.
package grants
