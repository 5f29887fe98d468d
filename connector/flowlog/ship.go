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
	"github.com/postern-zt/postern/proto/ids"
)

const (
	syncEvery = 100 * time.Millisecond
	shipEvery = time.Second
	shipBatch = 500
	// shipBackoff is the pause after the broker was not reached.
	shipBackoff = 5 * time.Second
	// refusedBackoff is the pause after something that does not pass by itself.
	refusedBackoff = time.Minute
)

// Batch is one shipment.
type Batch struct {
	// Records are lines in order.
	Records [][]byte
	// SignedHead is a sealed chain.SignedHead over exactly these.
	SignedHead []byte
}

// Shipper delivers a batch and returns the sequence up to which the broker has the records
// durably. An error that is ErrRefused is the broker's judgement of them.
type Shipper func(ctx context.Context, b Batch) (through uint64, err error)

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
			next = time.Now().Add(notShipped(ctx, log, err))
		}
	}
}

// notShipped logs why records wait and returns for how long to leave it.
func notShipped(ctx context.Context, log *slog.Logger, err error) time.Duration {
	if errors.Is(err, ErrRefused) || errors.Is(err, ErrSign) {
		log.ErrorContext(ctx, "flow records are not delivered", "error", err)
		return refusedBackoff
	}
	log.DebugContext(ctx, "flow records wait", "error", err)
	return shipBackoff
}

// Ship delivers what waits, batch by batch.
func (l *Log) Ship(ctx context.Context, ship Shipper) error {
	for l.Waiting() > 0 {
		lines, ends, err := l.batch()
		if err != nil || len(lines) == 0 {
			return err
		}
		first, last := ends[0].Seq, ends[len(ends)-1]
		signed, err := l.sign(first, last.Head)
		if err != nil {
			return err
		}
		through, err := ship(ctx, Batch{Records: lines, SignedHead: signed})
		if err != nil {
			return err
		}
		if through < first || through > last.Seq {
			return fmt.Errorf("the broker acknowledged record %d of %d to %d", through, first, last.Seq)
		}
		if err := l.acknowledge(ends[through-first]); err != nil {
			return err
		}
	}
	return nil
}

// sign makes the signed head of the records first to last.
func (l *Log) sign(first uint64, last chain.Head) ([]byte, error) {
	h := chain.SignedHead{
		Connector: ids.ConnectorID(last.Writer), First: first, Last: last.Seq, Count: last.Seq - first + 1,
		Hash: last.Hash, At: l.now(),
	}
	signed, err := h.Seal(l.key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSign, err)
	}
	return signed, nil
}

// batch reads the next records behind those that were shipped, and where each ends.
func (l *Log) batch() (lines [][]byte, ends []place, err error) {
	l.mu.Lock()
	r := batchReader{at: l.shipped, end: l.head}
	segs := append([]segment(nil), l.segments...)
	l.mu.Unlock()
	for _, s := range segs {
		if s.last <= r.at.Seq || r.full() {
			continue
		}
		if err := r.segment(s.path); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.path, err)
		}
	}
	return r.lines, r.ends, nil
}

// batchReader reads on from one record. It follows the chain: what is signed must be what was
// written.
type batchReader struct {
	at    place
	end   chain.Head // of the whole chain, from memory
	lines [][]byte
	ends  []place
}

func (r *batchReader) full() bool { return len(r.lines) >= shipBatch || r.at.Seq >= r.end.Seq }

// segment reads one file from the place that is known in it, else from its beginning.
func (r *batchReader) segment(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	offset := int64(0)
	if r.at.path == path {
		offset = r.at.offset
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, chain.MaxLine+1)
	for !r.full() {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil // the writer may be in the middle of the next line
		}
		if err != nil {
			return err
		}
		offset += int64(len(line))
		if err := r.line(bytes.TrimSuffix(line, []byte("\n")), path, offset); err != nil {
			return err
		}
	}
	return nil
}

// line takes one record, which ends at offset; those before the place are skipped.
func (r *batchReader) line(line []byte, path string, offset int64) error {
	var rec struct { // Open and Append have looked at the rest
		Seq  uint64     `json:"seq"`
		Prev chain.Hash `json:"prev"`
	}
	if err := json.Unmarshal(line, &rec); err != nil {
		return fmt.Errorf("%w: %w", chain.ErrMalformed, err)
	}
	if rec.Seq <= r.at.Seq {
		return nil
	}
	next := chain.Head{Writer: r.at.Writer, Seq: rec.Seq, Hash: chain.HashLine(line)}
	if rec.Seq != r.at.Seq+1 || rec.Prev != r.at.Hash || rec.Seq == r.end.Seq && next.Hash != r.end.Hash {
		return fmt.Errorf("%w: record %d was changed on disk", ErrSign, rec.Seq)
	}
	r.at = place{Head: next, path: path, offset: offset}
	r.lines = append(r.lines, bytes.Clone(line))
	r.ends = append(r.ends, r.at)
	return nil
}

// acknowledge remembers what the broker has and deletes the files behind it.
func (l *Log) acknowledge(h place) error {
	l.mu.Lock()
	b, err := json.Marshal(shippedState{Head: h.Head, Open: l.opens})
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
