package flowlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

const (
	// unknownWriter stands for one that the files do not tell.
	unknownWriter = "unknown"
	// maxAside bounds how many logs of one writer are kept beside each other.
	maxAside = 100
	// maxHeadFile bounds the head file: some hundred bytes for each flow that was open.
	maxHeadFile = 64 << 20
)

// SetAside renames a log that nobody has open to DIR-WRITER, so that the next identity
// begins its own and never ships these records. Without a log it does nothing.
func SetAside(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil // it held nothing
	}
	base := dir + "-" + writer(dir)
	for i := range maxAside {
		to := base
		if i > 0 {
			to = fmt.Sprintf("%s-%d", base, i+1)
		}
		if _, err := os.Lstat(to); errors.Is(err, os.ErrNotExist) {
			return os.Rename(dir, to)
		}
	}
	return fmt.Errorf("%s: too many old flow logs beside it", dir)
}

// writer reads whose log it is. The name becomes part of a path, so it must be an id.
func writer(dir string) string {
	for _, read := range []func(string) string{headWriter, recordWriter} {
		if id, err := ids.Parse[ids.ConnectorID](read(dir)); err == nil {
			return string(id)
		}
	}
	return unknownWriter
}

func headWriter(dir string) string {
	f, err := os.Open(filepath.Join(dir, headFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	var st shippedState
	if json.NewDecoder(io.LimitReader(f, maxHeadFile)).Decode(&st) != nil {
		return ""
	}
	return st.Writer
}

// recordWriter reads the first record: before the first shipment there is no head file.
func recordWriter(dir string) string {
	names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl")) // the pattern is well-formed
	sort.Strings(names)
	if len(names) == 0 {
		return ""
	}
	f, err := os.Open(names[0])
	if err != nil {
		return ""
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, chain.MaxLine+1).ReadSlice('\n')
	if err != nil {
		return ""
	}
	rec, err := chain.ParseLine(line[:len(line)-1])
	if err != nil {
		return ""
	}
	return rec.Writer
}
