package audit

import (
	"errors"
	"fmt"

	"github.com/postern-zt/postern/proto/chain"
)

// Errors for errors.Is.
var (
	// ErrMalformed: a line is no record, or breaks a limit.
	ErrMalformed = chain.ErrMalformed
	// ErrForked: a writer sent a record that differs from the one stored under its number.
	ErrForked = errors.New("the writer's audit chain forked")
	// ErrSignature: the head of a shipment is not signed with the connector's identity key.
	ErrSignature = errors.New("the connector's signature does not hold")
	// ErrOtherRecords: a connector's signed head belongs to other records than came with it.
	ErrOtherRecords = errors.New("the signed head belongs to other records")
	// ErrErased: the personal values of this user were erased.
	ErrErased = errors.New("personal values erased")
	// ErrNotSigned: records that no signed segment covers cannot be dropped.
	ErrNotSigned = errors.New("not covered by a signed segment")
)

// Reason returns the code of why a shipment was refused, or nothing when err is another
// kind of error.
func Reason(err error) string {
	switch {
	case errors.Is(err, ErrSignature):
		return "records_signature"
	case errors.Is(err, ErrOtherRecords):
		return "records_other"
	case errors.Is(err, ErrForked):
		return "records_forked"
	case errors.Is(err, ErrMalformed):
		return "records_malformed"
	default:
		return ""
	}
}

// Break is the first place at which a writer's chain does not hold.
type Break struct {
	Writer string
	Seq    uint64
	Line   int // in a file; 0 online
	Reason string
}

// Error names the place.
func (b *Break) Error() string {
	if b.Line > 0 {
		return fmt.Sprintf("line %d, writer %s, record %d: %s", b.Line, b.Writer, b.Seq, b.Reason)
	}
	return fmt.Sprintf("writer %s, record %d: %s", b.Writer, b.Seq, b.Reason)
}
