package frame

import (
	"errors"
	"fmt"
)

// Code is a result that crosses the wire: how a presentation, an open, an attachment or
// a flow ended. Numbers are never reused. A code that the reader does not know is a
// refusal like any other.
type Code uint16

// The registry of result codes.
const (
	OK                    Code = 0
	Denied                Code = 1
	GrantExpired          Code = 2
	GrantForeign          Code = 3
	GrantUnknown          Code = 4
	GrantInvalid          Code = 5
	Revoked               Code = 6
	AppMismatch           Code = 7
	PortNotGranted        Code = 8
	NotAssigned           Code = 9
	UnsupportedConstraint Code = 10
	NotLive               Code = 11
	LeaseEnded            Code = 12
	Refused               Code = 20
	Unreachable           Code = 21
	Timeout               Code = 22
	NameNotFound          Code = 23
	NameLeftAssignment    Code = 24
	NotDialled            Code = 25
	TooManyFlows          Code = 30
	NoMemory              Code = 31
	Draining              Code = 32
	AuditUnavailable      Code = 33
	TooManyOpens          Code = 34
	Reset                 Code = 40
	Gone                  Code = 41
	Closed                Code = 42
	StaleEpoch            Code = 43
	DetachedTooLong       Code = 44
	Gap                   Code = 45
	Superseded            Code = 46
	Withdrawn             Code = 47
	Idle                  Code = 48
	Unsupported           Code = 60
	Protocol              Code = 61
	Internal              Code = 62
)

type codeText struct{ name, sentence string }

// text returns name and sentence of a code. A switch keeps the registry immutable.
func (c Code) text() codeText {
	switch c {
	case OK:
		return codeText{"ok", "It worked."}
	case Denied:
		return codeText{"denied", "Access is not allowed."}
	case GrantExpired:
		return codeText{"grant_expired", "The grant has reached its end; ask again."}
	case GrantForeign:
		return codeText{"grant_foreign", "The grant was made for another device or connector."}
	case GrantUnknown:
		return codeText{"grant_unknown", "No such grant was presented on this link."}
	case GrantInvalid:
		return codeText{"grant_invalid", "The grant could not be verified."}
	case Revoked:
		return codeText{"revoked", "The access was withdrawn."}
	case AppMismatch:
		return codeText{"app_mismatch", "The grant is for another app."}
	case PortNotGranted:
		return codeText{"port_not_granted", "The grant does not cover this port."}
	case NotAssigned:
		return codeText{"not_assigned", "The app is not assigned to this connector."}
	case UnsupportedConstraint:
		return codeText{"unsupported_constraint", "The grant has a condition that this connector does not know."}
	case NotLive:
		return codeText{"not_live", "The connector has no fresh word from the broker."}
	case LeaseEnded:
		return codeText{"lease_ended", "The connector did not hear from the broker for too long."}
	case Refused:
		return codeText{"refused", "The app refused the connection."}
	case Unreachable:
		return codeText{"unreachable", "The app's address cannot be reached from the connector."}
	default:
		return c.moreText()
	}
}

func (c Code) moreText() codeText {
	switch c {
	case Timeout:
		return codeText{"timeout", "The app did not answer in time."}
	case NameNotFound:
		return codeText{"name_not_found", "The connector cannot resolve the app's name."}
	case NameLeftAssignment:
		return codeText{"name_left_assignment", "The app's name resolves to an address outside the assignment."}
	case NotDialled:
		return codeText{"not_dialled", "The connector did not try the app; another connector may."}
	case TooManyFlows:
		return codeText{"too_many_flows", "This device has too many open flows."}
	case TooManyOpens:
		return codeText{"too_many_opens", "This device has opened too many flows within a minute."}
	case NoMemory:
		return codeText{"no_memory", "The memory budget for flows is used up."}
	case Draining:
		return codeText{"draining", "The connector is ending and takes no new flows."}
	case AuditUnavailable:
		return codeText{"audit_unavailable", "The record of this access could not be stored."}
	case Reset:
		return codeText{"reset", "The other end reset the connection."}
	case Gone:
		return codeText{"gone", "The flow is not known here any more; the connector was restarted."}
	case Closed:
		return codeText{"closed", "The flow has already ended."}
	case StaleEpoch:
		return codeText{"stale_epoch", "A newer attachment of this flow exists."}
	case DetachedTooLong:
		return codeText{"detached_too_long", "The network was away for too long."}
	default:
		return c.lastText()
	}
}

func (c Code) lastText() codeText {
	switch c {
	case Gap:
		return codeText{"gap", "Bytes of the flow were lost."}
	case Superseded:
		return codeText{"superseded", "The client was restarted."}
	case Withdrawn:
		return codeText{"withdrawn", "The client closed the micro-tunnel."}
	case Idle:
		return codeText{"idle", "The flow was idle for too long."}
	case Unsupported:
		return codeText{"unsupported", "The other end is too old or too new for this."}
	case Protocol:
		return codeText{"protocol", "The other end broke the protocol."}
	case Internal:
		return codeText{"internal", "Something went wrong inside; the log says what."}
	default:
		return codeText{fmt.Sprintf("code_%d", uint16(c)), "The other end gave a reason that this version does not know."}
	}
}

// String returns the code's stable name, as in logs and JSON.
func (c Code) String() string { return c.text().name }

// Sentence returns a short sentence for people.
func (c Code) Sentence() string { return c.text().sentence }

// Error is a code as an error; it matches another Error with the same code.
type Error struct {
	Code Code
	// Message adds what the other end said; safe for people, may be empty.
	Message string
}

// Err returns nil for OK and an *Error for everything else.
func (c Code) Err() error {
	if c == OK {
		return nil
	}
	return &Error{Code: c}
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Message
}

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// CodeOf returns the code inside err: OK for nil, Internal when there is none.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}
