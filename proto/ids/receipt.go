package ids

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// ReceiptID names one recorded decision, for employee, helpdesk, SIEM and app owner alike:
// eight spoken-safe characters, the last a check character, written "K7M2-Q4TX".
// Seven characters of 5 bits give 2^35 values; the store refuses a repeated one and the
// caller draws again.
type ReceiptID string

const receiptAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewReceipt returns a fresh random receipt id.
func NewReceipt() ReceiptID {
	var b [7]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = receiptAlphabet[b[i]%32]
	}
	return formatReceipt(string(b[:]))
}

// ParseReceipt reads a receipt id as people type it: any case, with or without the hyphen,
// with O for 0 and I or L for 1. A wrong check character fails.
func ParseReceipt(s string) (ReceiptID, error) {
	clean := strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(s))
	if len(clean) != 8 {
		return "", fmt.Errorf("%w: a receipt has eight characters, like K7M2-Q4TX", ErrMalformed)
	}
	for _, c := range clean {
		if !strings.ContainsRune(receiptAlphabet, c) {
			return "", fmt.Errorf("%w: unexpected character %q in receipt", ErrMalformed, c)
		}
	}
	want := formatReceipt(clean[:7])
	if got := ReceiptID(clean[:4] + "-" + clean[4:]); got != want {
		return "", fmt.Errorf("%w: the check character does not match, one character was misread", ErrMalformed)
	}
	return want, nil
}

// formatReceipt appends the check character: a weighted sum with odd weights modulo 32, so
// that every single wrong character is noticed.
func formatReceipt(body string) ReceiptID {
	sum := 0
	for i := range len(body) {
		sum += (2*i + 1) * strings.IndexByte(receiptAlphabet, body[i])
	}
	full := body + string(receiptAlphabet[sum%32])
	return ReceiptID(full[:4] + "-" + full[4:])
}
