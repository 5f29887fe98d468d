// Package session holds the sessions of the broker: one user on one device, signed in. It
// guards what ends one (a person, an admin, an age limit, idleness, a restore), and knows
// which sessions an event touches and when a session must be looked at next, so that
// exactly those are decided again.
//
// broker/identity creates sessions after sign-in, the control API finds them by id, the
// decision maker reads their authentication context. The package decides no access and
// revokes no grant: whoever ends a session revokes its grants (broker/grants). The store
// announces each change under Topic with the session's id as key.
//
// The functions over Session values are pure. Sessions has no state of its own and is safe
// for concurrent use.
package session
