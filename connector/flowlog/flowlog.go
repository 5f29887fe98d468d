// Package flowlog is the connector's own audit: one hash chain of flow records on disk,
// written before the app is dialled, synced at most 100 ms later, shipped to the broker
// and deleted when the broker has it (decisions rule 31). A flow whose record cannot be
// written is not opened; a close is never lost: after a crash each open without a close
// gets a synthetic one, marked inexact. Each shipment carries a head that is signed with the
// identity key, which may be slow: one signature for up to 500 records, never on the way of a
// flow that opens (rule 35).
//
//	STATE/flows/head.json        what the broker has: the head there, and flows open then
//	STATE/flows/0000000001.jsonl segments, named by the sequence of their first record
//
// A Log is safe for concurrent use. Run syncs and ships; it owns no other goroutine.
package flowlog

import (
	"bufio"
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/postern-zt/postern/platform/paths"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	headFile = "head.json"
	// segmentRecords is how many records one file holds; whole files are deleted.
	segmentRecords = 4096
	// maxUnshipped is how many records may wait for the broker: about 1 GiB of disk.
	// Beyond it nothing opens, because its record could not be kept.
	maxUnshipped = 1 << 21
)

// Errors for errors.Is.
var (
	// ErrFull says that too many records wait for the broker.
	ErrFull = errors.New("too many flow records wait for the broker")
	// ErrRefused is what a Shipper returns when the broker does not take these records.
	ErrRefused = errors.New("the broker refuses the flow records")
	// ErrSign says that the records could not be signed, so they were not shipped.
	ErrSign = errors.New("flow records not signed")
)

// Log is the chain of one connector.
type Log struct {
	dir string
	key crypto.Signer
	now func() time.Time

	mu       sync.Mutex // guards all below
	head     chain.Head
	shipped  place
	segments []segment
	file     *os.File
	dirty    bool
	// broken is set after a write that failed half way; the file is cut before the next.
	broken bool
	size   int64
	opens  map[string]chain.Record
}

// shippedState is the content of the head file. Open holds the flows that were open when
// it was written, because the files with their open records may be deleted.
type shippedState struct {
	chain.Head
	Open map[string]chain.Record `json:"open,omitempty"`
}

// place is a record and where it ends; without a path the file is to be searched for it.
type place struct {
	chain.Head
	path   string
	offset int64
}

// segment is one file.
type segment struct {
	first, last uint64
	path        string
}

// Open reads the chain in dir, cuts a half-written last line, and closes the flows that a
// crash left open with inexact records. key is the identity key of self; it signs what is
// shipped.
func Open(dir string, self ids.ConnectorID, key crypto.Signer, now func() time.Time) (*Log, error) {
	if key == nil {
		return nil, fmt.Errorf("%w: no identity key", ErrSign)
	}
	if now == nil {
		now = time.Now
	}
	if err := paths.PrivateDir(dir); err != nil {
		return nil, err
	}
	l := &Log{dir: dir, key: key, now: now, opens: make(map[string]chain.Record)}
	if err := l.loadHead(self); err != nil {
		return nil, err
	}
	if err := l.loadSegments(); err != nil {
		return nil, err
	}
	return l, l.closeInexact()
}

func (l *Log) loadHead(self ids.ConnectorID) error {
	l.shipped = place{Head: chain.Head{Writer: string(self)}}
	b, err := os.ReadFile(filepath.Join(l.dir, headFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		var st shippedState
		if err := json.Unmarshal(b, &st); err != nil {
			return fmt.Errorf("flow log head: %w", err)
		}
		l.shipped = place{Head: st.Head}
		maps.Copy(l.opens, st.Open)
		if l.shipped.Writer != string(self) {
			return fmt.Errorf("flow log in %s belongs to %s", l.dir, l.shipped.Writer)
		}
	}
	l.head = l.shipped.Head
	return nil
}

func (l *Log) loadSegments() error {
	names, err := filepath.Glob(filepath.Join(l.dir, "*.jsonl"))
	if err != nil {
		return err
	}
	sort.Strings(names)
	for i, name := range names {
		if err := l.loadSegment(name, i == len(names)-1); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// loadSegment reads one file; only in the last one may the last line be incomplete.
func (l *Log) loadSegment(name string, last bool) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s := segment{path: name}
	if _, err := fmt.Sscanf(filepath.Base(name), "%d.jsonl", &s.first); err != nil || s.first == 0 || s.first > l.head.Seq+1 {
		f.Close()
		return fmt.Errorf("records %d to %d are missing", l.head.Seq+1, s.first)
	}
	good, err := l.readLines(f)
	if errors.Is(err, chain.ErrMalformed) && last {
		err = f.Truncate(good)
	}
	if err == nil {
		_, err = f.Seek(good, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return err
	}
	s.last = l.head.Seq
	if s.last < s.first {
		return errors.Join(f.Close(), os.Remove(name)) // holds nothing
	}
	l.segments = append(l.segments, s)
	if last {
		l.file, l.size = f, good
		return nil
	}
	return f.Close()
}

// readLines follows the chain and returns how many bytes of the file are good.
func (l *Log) readLines(f *os.File) (good int64, err error) {
	r := bufio.NewReaderSize(f, chain.MaxLine+1)
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return good, nil
		}
		if err != nil {
			return good, fmt.Errorf("%w: incomplete line", chain.ErrMalformed)
		}
		body := bytes.TrimSuffix(line, []byte("\n"))
		rec, err := chain.ParseLine(body)
		if err != nil {
			return good, err
		}
		if rec.Seq <= l.head.Seq { // shipped, in a file that is not deleted yet
			l.follow(rec)
			good += int64(len(line))
			continue
		}
		if rec.Seq != l.head.Seq+1 || rec.Prev != l.head.Hash {
			return good, fmt.Errorf("chain is broken at record %d", rec.Seq)
		}
		l.head = chain.Head{Writer: rec.Writer, Seq: rec.Seq, Hash: chain.HashLine(body)}
		l.follow(rec)
		good += int64(len(line))
	}
}

// follow keeps the opens that have no close yet.
func (l *Log) follow(rec chain.Record) {
	switch flow := rec.Details["flow"]; rec.Kind {
	case chain.FlowOpened:
		l.opens[flow] = rec
	case chain.FlowClosed:
		delete(l.opens, flow)
	}
}

// closeInexact ends the flows of the process before: their byte counts are unknown.
func (l *Log) closeInexact() error {
	for flow, rec := range l.opens {
		e := rec.Event
		e.Kind, e.Inexact = chain.FlowClosed, true
		e.Details = map[string]string{"flow": flow, "cause": "crash"}
		if err := l.Append(e); err != nil {
			return err
		}
	}
	return l.Sync()
}

// Append writes a record; after it returns nil the record survives a crash of the
// process, and after the next Sync one of the machine.
func (l *Log) Append(e chain.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head.Seq-l.shipped.Seq >= maxUnshipped && e.Kind != chain.FlowClosed {
		return ErrFull
	}
	if err := l.readyLocked(); err != nil {
		return err
	}
	rec, line, head, err := l.head.Next(e, l.now())
	if err != nil {
		return err
	}
	n, err := l.file.Write(append(line, '\n'))
	if err != nil {
		l.broken = n > 0
		return fmt.Errorf("flow record: %w", err)
	}
	l.size += int64(n)
	l.head, l.dirty = head, true
	l.segments[len(l.segments)-1].last = head.Seq
	l.follow(rec)
	return nil
}

// readyLocked makes sure of a file to append to, without half a line at its end.
func (l *Log) readyLocked() error {
	if l.broken {
		if err := l.file.Truncate(l.size); err != nil {
			return fmt.Errorf("flow record: %w", err)
		}
		if _, err := l.file.Seek(l.size, io.SeekStart); err != nil {
			return fmt.Errorf("flow record: %w", err)
		}
		l.broken = false
	}
	if l.file != nil && l.head.Seq-l.segments[len(l.segments)-1].first+1 < segmentRecords {
		return nil
	}
	return l.rollLocked()
}

// rollLocked begins a new file.
func (l *Log) rollLocked() error {
	if l.file != nil {
		if err := errors.Join(l.file.Sync(), l.file.Close()); err != nil {
			return fmt.Errorf("flow record: %w", err)
		}
		l.file = nil
	}
	path := filepath.Join(l.dir, fmt.Sprintf("%020d.jsonl", l.head.Seq+1))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("flow record: %w", err)
	}
	l.file, l.size = f, 0
	l.segments = append(l.segments, segment{first: l.head.Seq + 1, last: l.head.Seq, path: path})
	return nil
}

// Sync makes durable what Append wrote.
func (l *Log) Sync() error {
	l.mu.Lock()
	f, dirty := l.file, l.dirty
	l.dirty = false
	l.mu.Unlock()
	if f == nil || !dirty {
		return nil
	}
	if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("flow records: %w", err)
	}
	return nil
}

// Close syncs and closes the file. Safe twice.
func (l *Log) Close() error {
	err := l.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return err
	}
	err = errors.Join(err, l.file.Close())
	l.file = nil
	return err
}

// Head returns the end of the chain.
func (l *Log) Head() chain.Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Shipped returns the end of what the broker has acknowledged: it must have that for ever.
func (l *Log) Shipped() chain.Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shipped.Head
}

// Waiting returns how many records the broker has not acknowledged.
func (l *Log) Waiting() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head.Seq - l.shipped.Seq
}
