package dns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// resolvConf is the file as it was read. A symbolic link is followed and stays: we
// change the file it leads to, in place, which keeps owner, mode and inode, and
// works for a file that is mounted by itself, as in containers.
type resolvConf struct {
	path   string
	exists bool
	bytes  []byte
}

func readResolvConf(path string) (resolvConf, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return resolvConf{path: path}, nil
	}
	if err != nil {
		return resolvConf{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err != nil {
		return resolvConf{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	if len(content) > maxResolvConf {
		return resolvConf{}, fmt.Errorf("%s has more than %d bytes; it is left alone", path, maxResolvConf)
	}
	return resolvConf{path: path, exists: true, bytes: content}, nil
}

// replace writes first and cuts afterwards: a program that reads in between never
// finds an empty file, which it would take for "ask localhost".
func (r resolvConf) replace(content []byte) error {
	if r.exists && bytes.Equal(r.bytes, content) {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// remove takes away a file that we made. Behind a symbolic link that is its
// target: the link was there before.
func (r resolvConf) remove() error {
	target, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		return err
	}
	return os.Remove(target)
}
