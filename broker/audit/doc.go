// Package audit keeps the tamper-evident record of what the broker and the connectors did:
// who, which device, which app, which decision, why. Every leaf of the broker that acts
// writes here: Append before the action, and the action fails when it fails; AppendBestEffort
// for denials and revocations, which never wait for the disk. It must not be used as a log.
//
// Each writer (a broker, a connector) has one hash chain of records; the line format is
// proto/chain. Signed segments (proto/seal, domain Segment) fix the hash at their end; the
// records of a segment may be archived and dropped, and the rest still verifies. Heads that
// others remember show a tail that was cut after the last segment. Connectors sign the heads of
// their own chains with their identity keys: what they recorded cannot be changed even by who
// holds the broker's keys.
//
// Personal values are sealed with a key per user; erasing the key erases them everywhere,
// and no hash changes. A Log is safe for concurrent use.
package audit
