package paths

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Permissions of what this package makes.
const (
	privateDir fs.FileMode = 0o700
	sharedDir  fs.FileMode = 0o755
)

// PrivateDir makes dir, and what is missing above it, and makes sure that only
// its owner may enter. A symbolic link or a directory of somebody else is an
// error: both are how one user borrows the rights of another.
func PrivateDir(dir string) error {
	// Missing parents are for passing through; only the directory is private.
	if err := os.MkdirAll(filepath.Dir(dir), sharedDir); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return ownDir(dir, privateDir)
}

// SharedDir makes dir so that others may enter but not write, for a socket that
// other users connect to.
func SharedDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), sharedDir); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return ownDir(dir, sharedDir)
}

func ownDir(dir string, perm fs.FileMode) error {
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("check directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("check directory %s: not a directory", dir)
	}
	if err := checkOwner(dir, info); err != nil {
		return err
	}
	if !permsMatter || info.Mode().Perm() == perm {
		return nil
	}
	if err := os.Chmod(dir, perm); err != nil {
		return fmt.Errorf("set permissions of directory: %w", err)
	}
	return nil
}

// WriteFile replaces path by data: written beside it, flushed, renamed over it,
// directory flushed. After a crash path holds the old or the new content.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fill(tmp, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write %s: flush directory: %w", path, err)
	}
	return nil
}

// fill writes, flushes and closes f.
func fill(f *os.File, data []byte, perm fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil && permsMatter {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
