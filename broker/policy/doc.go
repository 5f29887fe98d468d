// Package policy decides. A Document (rules, schedules, the baseline of each class, the
// trust table) compiles once into an immutable Revision; Revision.Decide is a pure function
// of that revision and an Input, which carries the request, the facts and the time. The same
// input under the same revision gives the same Decision for ever: Replay.
//
// Rules are written as forms or as Cedar text, both end as Cedar policies checked strictly
// against a schema. Default deny, forbid wins, order does not matter, and any evaluation
// error denies. The baseline of an app's class enters as forbids, so that no rule weakens it.
//
// Cedar has no third value and skips a forbid that fails to evaluate. Hence (1) facts enter
// as total records {state, age_s, source} and policies may test only `state == "pass"`;
// (2) schedules and age limits enter as booleans with a known end, from which
// Decision.ReEvaluateAt comes; (3) an error in any candidate policy denies the request.
//
// broker/decision keeps the current revision, records decisions and gives them receipts;
// this package does no I/O, reads no clock and starts nothing. A Revision and an Input that
// nobody writes to may be used from any number of goroutines.
package policy
