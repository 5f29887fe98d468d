package ticket

// EncodeForTest and DecodeForTest open the inner message to the tests.
var (
	EncodeForTest = Ticket.encode
	DecodeForTest = decode
)
