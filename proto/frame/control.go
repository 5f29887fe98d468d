package frame

import "fmt"

// AppendPresent appends a present: the client shows a signed grant under a reference
// of its own choice. Header value: ref, payload: the envelope as it was received.
func AppendPresent(b []byte, ref uint64, envelope []byte) []byte {
	return appendFrame(b, Header{Type: TypePresent, Value: ref}, envelope)
}

// Presented answers a present. Header value: ref, code: result, payload: message.
type Presented struct {
	Ref     uint64
	Code    Code
	Message string
}

// AppendPresented appends the frame; the message is cut to MaxMessage bytes.
func AppendPresented(b []byte, p Presented) []byte {
	return appendFrame(b, Header{Type: TypePresented, Code: p.Code, Value: p.Ref}, []byte(cutText(p.Message)))
}

// ParsePresented reads a presented frame.
func ParsePresented(h Header, p []byte) (Presented, error) {
	if !validText(p) {
		return Presented{}, fmt.Errorf("%w: presented message", ErrPayload)
	}
	return Presented{Ref: h.Value, Code: h.Code, Message: string(p)}, nil
}

// AppendWithdraw appends a withdraw: from the client, it closes the micro-tunnel of
// ref; from the connector, it says that the micro-tunnel was closed and why.
func AppendWithdraw(b []byte, ref uint64, code Code) []byte {
	return appendFrame(b, Header{Type: TypeWithdraw, Code: code, Value: ref}, nil)
}

// AppendPing and AppendPong append a probe and its answer; id is echoed.
func AppendPing(b []byte, id uint64) []byte {
	return appendFrame(b, Header{Type: TypePing, Value: id}, nil)
}

// AppendPong answers a ping.
func AppendPong(b []byte, id uint64) []byte {
	return appendFrame(b, Header{Type: TypePong, Value: id}, nil)
}

// AppendDrain appends a drain: the sender takes no new flows, the old ones go on.
func AppendDrain(b []byte) []byte {
	return appendFrame(b, Header{Type: TypeDrain, Code: Draining}, nil)
}
