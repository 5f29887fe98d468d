package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// An exported file is JSON lines: a header, then for each writer its records as they stand
// in the chain, each segment and what a connector signed after its records, and its head; an
// end line at last. A line
// that begins with framePrefix holds one field of fileLine, each other one is a record.
const (
	framePrefix = `{"postern":`
	fileFormat  = "postern-audit/1"
	// maxFileLine bounds a line of a file; a segment is below 1 KiB.
	maxFileLine = MaxLine + 4096
)

type fileFrame struct {
	Postern fileLine `json:"postern"`
}

type fileLine struct {
	Header  *fileHeader  `json:"header,omitempty"`
	Segment *fileSegment `json:"segment,omitempty"`
	Head    *Head        `json:"head,omitempty"`
	End     *fileEnd     `json:"end,omitempty"`
	// Connector is a connector's signature over its records before this line.
	Connector *fileSigned `json:"connector,omitempty"`
}

type fileHeader struct {
	Format string `json:"format"`
	TimeMS int64  `json:"time_ms"`
}

type fileSegment struct {
	Writer  string `json:"writer"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	Dropped bool   `json:"dropped,omitempty"`
	Signed  []byte `json:"signed"`
}

// fileSigned holds an envelope of chain.SignedHead; it carries the connector's public key.
type fileSigned struct {
	Writer string `json:"writer"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
	Signed []byte `json:"signed"`
}

type fileEnd struct {
	Lines int `json:"lines"` // before this one
}

// Export writes all chains, or that of one writer up to record through (0 for all), in the
// form that VerifyFile reads.
func (l *Log) Export(ctx context.Context, w io.Writer, writer string, through uint64) error {
	heads, err := l.cfg.Store.AuditHeads(ctx)
	if err != nil {
		return fmt.Errorf("export audit: %w", err)
	}
	out := &fileWriter{w: bufio.NewWriter(w)}
	out.put(fileLine{Header: &fileHeader{Format: fileFormat, TimeMS: time.Now().UnixMilli()}})
	for _, head := range heads {
		if writer != "" && writer != head.Writer {
			continue
		}
		if err := l.exportChain(ctx, out, head, through); err != nil {
			return fmt.Errorf("export audit of %s: %w", head.Writer, err)
		}
	}
	out.put(fileLine{End: &fileEnd{Lines: out.lines}})
	return errors.Join(out.err, out.w.Flush())
}

func (l *Log) exportChain(ctx context.Context, out *fileWriter, head Head, through uint64) error {
	if through > 0 && through < head.Seq {
		rows, err := l.cfg.Store.AuditRows(ctx, head.Writer, through-1, 1)
		if err != nil || len(rows) == 0 {
			return errors.Join(err, fmt.Errorf("record %d is not in the store", through))
		}
		head = Head{Writer: head.Writer, Seq: through, Hash: rows[0].Hash}
	}
	err := l.walk(ctx, head, steps{
		row: func(r Row) error { return out.line(r.Line) },
		segment: func(s Segment) error {
			return out.put(fileLine{Segment: &fileSegment{Writer: s.Writer, First: s.First, Last: s.Last, Dropped: s.Dropped, Signed: s.Signed}})
		},
		connector: func(h ConnectorHead) error {
			return out.put(fileLine{Connector: &fileSigned{Writer: h.Writer, First: h.First, Last: h.Last, Signed: h.Signed}})
		},
	})
	if err != nil {
		return err
	}
	return out.put(fileLine{Head: &head})
}

// fileWriter writes lines and keeps the first error.
type fileWriter struct {
	w     *bufio.Writer
	lines int
	err   error
}

func (f *fileWriter) put(l fileLine) error {
	b, err := json.Marshal(fileFrame{l})
	if err != nil {
		return err
	}
	return f.line(b)
}

func (f *fileWriter) line(b []byte) error {
	if f.err == nil {
		f.lines++
		_, err := f.w.Write(append(b[:len(b):len(b)], '\n'))
		f.err = err
	}
	return f.err
}

// VerifyFile checks an exported file without the store: what Verify checks, and that the
// file is complete. It returns an error only when r fails or is no export at all.
func VerifyFile(r io.Reader, trust Trust) (Report, error) {
	f := &fileVerifier{verification: newVerification(trust), open: make(map[string]*track), failed: make(map[string]error)}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, maxFileLine), maxFileLine)
	for in.Scan() {
		f.lines++
		if err := f.line(in.Bytes()); err != nil {
			return Report{}, fmt.Errorf("line %d: %w", f.lines, err)
		}
	}
	if err := in.Err(); err != nil {
		return Report{}, fmt.Errorf("line %d: %w", f.lines+1, err)
	}
	return f.finishFile()
}

// fileVerifier feeds the lines of a file to the chains.
type fileVerifier struct {
	*verification
	lines  int
	ended  bool
	order  []string
	open   map[string]*track
	failed map[string]error // the first break of a chain, its later lines are skipped
}

func (f *fileVerifier) line(line []byte) error {
	if f.ended {
		return fmt.Errorf("%w: lines after the end", ErrMalformed)
	}
	if f.lines > 1 && !bytes.HasPrefix(line, []byte(framePrefix)) {
		return f.record(line)
	}
	var frame fileFrame
	if err := json.Unmarshal(line, &frame); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	l := frame.Postern
	switch {
	case f.lines == 1:
		if l.Header == nil || l.Header.Format != fileFormat {
			return fmt.Errorf("%w: not an export of the format %s", ErrMalformed, fileFormat)
		}
	case l.Segment != nil:
		f.feed(l.Segment.Writer, func(c *track) error { return c.segment(f.trust.Keys, l.Segment.Signed, !l.Segment.Dropped) })
	case l.Connector != nil:
		f.feed(l.Connector.Writer, func(c *track) error { return c.connectorHead(l.Connector.Signed) })
	case l.Head != nil:
		f.feed(l.Head.Writer, func(c *track) error { return c.atHead(*l.Head) })
	case l.End != nil:
		f.ended = l.End.Lines == f.lines-1
	default:
		return fmt.Errorf("%w: unknown kind of line", ErrMalformed)
	}
	return nil
}

// record finds the writer of a record; a line that cannot be read breaks the chain that was
// fed last.
func (f *fileVerifier) record(line []byte) error {
	r, err := ParseLine(line)
	writer := r.Writer
	if err != nil {
		if len(f.order) == 0 {
			return err
		}
		writer = f.order[len(f.order)-1]
	}
	f.feed(writer, func(c *track) error {
		_, err := c.line(line)
		return err
	})
	return nil
}

func (f *fileVerifier) feed(writer string, step func(*track) error) {
	c, ok := f.open[writer]
	if !ok {
		c = f.track(writer)
		f.open[writer] = c
		f.order = append(f.order, writer)
	}
	if f.failed[writer] != nil {
		return
	}
	if err := step(c); err != nil {
		var b *Break
		if errors.As(err, &b) {
			b.Line = f.lines
		}
		f.failed[writer] = err
	}
}

// atHead checks the head line of a file.
func (c *track) atHead(h Head) error {
	if c.seq != h.Seq || c.hash != h.Hash {
		return c.broken(c.seq+1, "missing: the exported head is %d", h.Seq)
	}
	return nil
}

func (f *fileVerifier) finishFile() (Report, error) {
	if f.lines == 0 {
		return Report{}, fmt.Errorf("%w: empty file", ErrMalformed)
	}
	for _, writer := range f.order {
		if err := f.close(f.open[writer], f.failed[writer]); err != nil {
			return Report{}, err
		}
	}
	report := f.finish()
	if !f.ended {
		report.Breaks = append(report.Breaks, &Break{Line: f.lines, Reason: "the file ends early"})
	}
	return report, nil
}
