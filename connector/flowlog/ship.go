package flowlog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/chain"
)

const (
	syncEvery = 100 * time.Millisecond
	shipEvery = time.Second
	shipBatch = 500
	// shipBackoff is the pause after the broker was not reached.
	shipBackoff = 5 * time.Second
)

// Shipper delivers lines in order and returns the sequence up to which the broker has
// them durably.
type Shipper func(ctx context.Context, lines [][]byte) (through uint64, err error)

// Run syncs and ships until ctx ends, then syncs once more.
func (l *Log) Run(ctx context.Context, ship Shipper, log *slog.Logger) error {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	next := time.Now().Add(shipEvery)
	for {
		select {
		case <-ctx.Done():
			return l.Sync()
		case <-tick.C:
		}
		if err := l.Sync(); err != nil {
			log.ErrorContext(ctx, "flow records not on disk", "error", err)
		}
		if time.Now().Before(next) || l.Waiting() == 0 {
			continue
		}
		next = time.Now().Add(shipEvery)
		if err := l.Ship(ctx, ship); err != nil && ctx.Err() == nil {
			log.DebugContext(ctx, "flow records wait", "error", err)
			next = time.Now().Add(shipBackoff)
		}
	}
}

// Ship delivers what waits, batch by batch.
func (l *Log) Ship(ctx context.Context, ship Shipper) error {
	for l.Waiting() > 0 {
		lines, heads, err := l.batch()
		if err != nil || len(lines) == 0 {
			return err
		}
		through, err := ship(ctx, lines)
		if err != nil {
			return err
		}
		i := int(through) - int(heads[0].Seq)
		if through < heads[0].Seq || i >= len(heads) {
			return fmt.Errorf("the broker acknowledged record %d of %d to %d", through, heads[0].Seq, heads[len(heads)-1].Seq)
		}
		if err := l.acknowledge(heads[i]); err != nil {
			return err
		}
	}
	return nil
}

// batch reads the next records behind those that were shipped.
func (l *Log) batch() (lines [][]byte, heads []chain.Head, err error) {
	l.mu.Lock()
	from, end := l.shipped, l.head.Seq
	segs := append([]segment(nil), l.segments...)
	l.mu.Unlock()
	for _, s := range segs {
		if s.last <= from.Seq {
			continue
		}
		if err := readSegment(s.path, func(seq uint64, line []byte) bool {
			if seq > from.Seq && seq <= end {
				lines = append(lines, bytes.Clone(line))
				heads = append(heads, chain.Head{Writer: from.Writer, Seq: seq, Hash: chain.HashLine(line)})
			}
			return len(lines) < shipBatch
		}); err != nil {
			return nil, nil, err
		}
		if len(lines) >= shipBatch {
			break
		}
	}
	return lines, heads, nil
}

func readSegment(path string, each func(seq uint64, line []byte) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, chain.MaxLine+1)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil // the writer may be in the middle of the next line
		}
		if err != nil {
			return err
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		rec, err := chain.ParseLine(line)
		if err != nil {
			return err
		}
		if !each(rec.Seq, line) {
			return nil
		}
	}
}

// acknowledge remembers what the broker has and deletes the files behind it.
func (l *Log) acknowledge(h chain.Head) error {
	l.mu.Lock()
	b, err := json.Marshal(shippedState{Head: h, Open: l.opens})
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := paths.WriteFile(filepath.Join(l.dir, headFile), b, 0o600); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shipped = h
	for len(l.segments) > 1 && l.segments[0].last <= h.Seq {
		if err := os.Remove(l.segments[0].path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l.segments = l.segments[1:]
	}
	return nil
}
