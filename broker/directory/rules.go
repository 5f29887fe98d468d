package directory

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on what an issuer or an admin may store about one person. The figures are far above
// what real directories hold and far below what would hurt a page or an index.
const (
	maxLogin     = 64
	maxName      = 200
	maxMail      = 254 // RFC 5321
	maxSubject   = 255 // OpenID Connect Core, section 2
	maxGroupName = 200
)

// CheckLocal reports whether a local user may have these values.
func CheckLocal(login, name, mail string) error {
	if err := checkLogin(login); err != nil {
		return err
	}
	if err := checkText("name", name, 0, maxName); err != nil {
		return err
	}
	return checkText("mail", mail, 0, maxMail)
}

// checkLogin allows letters, digits and . _ - @ +, so that a login is unambiguous in a
// command line and may be a mail address.
func checkLogin(s string) error {
	if err := checkText("login", s, 1, maxLogin); err != nil {
		return err
	}
	for _, r := range s {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-@+", r) {
			return fmt.Errorf("%w: a login has letters, digits and . _ - @ +", ErrInvalid)
		}
	}
	return nil
}

func checkText(what, s string, least, most int) error {
	if len(s) < least || len(s) > most {
		return fmt.Errorf("%w: %s has %d to %d bytes", ErrInvalid, what, least, most)
	}
	if !printable(s) {
		return fmt.Errorf("%w: %s has characters that cannot be shown", ErrInvalid, what)
	}
	return nil
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
