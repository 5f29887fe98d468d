package backup

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	magic     = "postern-backup-1\n"
	maxHeader = 4096
	// chunkLen is small enough to hold in memory twice and large enough that the 16 bytes of
	// its tag do not matter.
	chunkLen = 64 << 10
	lastFlag = 11 // place in the nonce
)

// sealer encrypts what is written to it, in chunks; Close writes the last one.
type sealer struct {
	w    io.Writer
	aead cipher.AEAD
	n    uint64
	buf  []byte // at most chunkLen; the last chunk is known only at Close
}

// newSealer writes magic and header and returns the encrypting writer.
func newSealer(w io.Writer, s Secret) (*sealer, error) {
	h := s.newHeader()
	raw, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	raw = append(raw, '\n')
	aead, err := newAEAD(s, h, raw)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(append([]byte(magic), raw...)); err != nil {
		return nil, err
	}
	return &sealer{w: w, aead: aead, buf: make([]byte, 0, chunkLen)}, nil
}

func newAEAD(s Secret, h header, raw []byte) (cipher.AEAD, error) {
	key, err := s.fileKey(h, raw)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (s *sealer) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if len(s.buf) == chunkLen {
			if err := s.flush(false); err != nil {
				return total - len(p), err
			}
		}
		n := min(chunkLen-len(s.buf), len(p))
		s.buf, p = append(s.buf, p[:n]...), p[n:]
	}
	return total, nil
}

// Close writes the last chunk; it may be empty only when nothing was written.
func (s *sealer) Close() error { return s.flush(true) }

func (s *sealer) flush(last bool) error {
	_, err := s.w.Write(s.aead.Seal(nil, nonce(s.n, last), s.buf, nil))
	s.n++
	s.buf = s.buf[:0]
	return err
}

// nonce of chunk n; n cannot wrap: 2^64 chunks do not fit any disk.
func nonce(n uint64, last bool) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint64(b[3:], n)
	if last {
		b[lastFlag] = 1
	}
	return b
}

// opener decrypts a file as it is read.
type opener struct {
	r     *bufio.Reader
	aead  cipher.AEAD
	n     uint64
	plain []byte
	done  bool
}

// newOpener checks magic and header.
func newOpener(r io.Reader, s Secret) (*opener, error) {
	in := bufio.NewReaderSize(r, maxHeader)
	start, err := in.Peek(len(magic))
	if err != nil || string(start) != magic {
		return nil, ErrNotBackup
	}
	if _, err := in.Discard(len(magic)); err != nil {
		return nil, err
	}
	raw, err := in.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("%w: header", ErrNotBackup)
	}
	raw = bytes.Clone(raw)
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("%w: header", ErrNotBackup)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	aead, err := newAEAD(s, h, raw)
	if err != nil {
		return nil, err
	}
	return &opener{r: in, aead: aead}, nil
}

func (o *opener) Read(p []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.done {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

// next opens one chunk. It is the last one exactly when the file ends after it.
func (o *opener) next() error {
	box := make([]byte, chunkLen+o.aead.Overhead())
	n, err := io.ReadFull(o.r, box)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: it ends early", ErrDamaged)
		}
		return err
	}
	_, err = o.r.Peek(1)
	o.done = errors.Is(err, io.EOF)
	o.plain, err = o.aead.Open(nil, nonce(o.n, o.done), box[:n], nil)
	if err != nil {
		return o.openError()
	}
	o.n++
	return nil
}

func (o *opener) openError() error {
	if o.n == 0 {
		return ErrWrongKey
	}
	return fmt.Errorf("%w: chunk %d", ErrDamaged, o.n)
}
