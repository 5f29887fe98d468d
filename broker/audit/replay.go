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

// Replay appends the records of an exported file that the store does not have, to the chains
// of their writers, and calls seen for each that lies behind base, whether or not the store
// has it already. The file must have been verified (VerifyFile). A chain that went on
// differently since base stays as it is; that is an ErrForked after the whole file was read.
func (l *Log) Replay(ctx context.Context, r io.Reader, base []Head, seen func(Record)) (appended uint64, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, maxFileLine), maxFileLine)
	p := &replayer{log: l, seen: seen, base: make(map[string]uint64)}
	for _, h := range base {
		p.base[h.Writer] = h.Seq
	}
	for in.Scan() {
		take := p.line
		if bytes.HasPrefix(in.Bytes(), []byte(framePrefix)) {
			take = p.frame
		}
		if err := take(ctx, bytes.Clone(in.Bytes())); err != nil {
			return p.appended, fmt.Errorf("replay audit: %w", err)
		}
	}
	if err := errors.Join(in.Err(), p.flush(ctx), p.forked); err != nil {
		return p.appended, fmt.Errorf("replay audit: %w", err)
	}
	return p.appended, nil
}

// replayer collects the records of one writer up to maxGroup.
type replayer struct {
	log      *Log
	seen     func(Record)
	base     map[string]uint64
	writer   string
	lines    [][]byte
	appended uint64
	forked   error
}

func (p *replayer) line(ctx context.Context, line []byte) error {
	rec, err := ParseLine(line)
	if err != nil {
		return err
	}
	if rec.Writer != p.writer || len(p.lines) == maxGroup {
		if err := p.flush(ctx); err != nil {
			return err
		}
		p.writer = rec.Writer
	}
	if rec.Seq > p.base[rec.Writer] {
		p.seen(rec)
	}
	p.lines = append(p.lines, line)
	return nil
}

// frame keeps what a connector signed over the records before; other frames are made anew.
func (p *replayer) frame(ctx context.Context, line []byte) error {
	var f fileFrame
	if err := json.Unmarshal(line, &f); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	s := f.Postern.Connector
	if s == nil {
		return nil
	}
	if err := p.flush(ctx); err != nil {
		return err
	}
	h := ConnectorHead{Writer: s.Writer, First: s.First, Last: s.Last, Signed: s.Signed, At: time.Now()}
	if ok, err := p.log.holds(ctx, h); err != nil || !ok {
		return err
	}
	return p.log.cfg.Store.AddConnectorHead(ctx, h)
}

// flush appends what is new; known records are compared.
func (p *replayer) flush(ctx context.Context) error {
	rows, err := parseShipped(p.writer, p.lines)
	if err != nil || len(rows) == 0 {
		return err
	}
	p.lines = nil
	before, err := p.log.cfg.Store.AuditHead(ctx, p.writer)
	if err != nil {
		return err
	}
	through, err := p.log.store(ctx, rows, nil, nil)
	if errors.Is(err, ErrForked) {
		p.forked = err
		return nil
	}
	p.appended += through - before.Seq
	return err
}
