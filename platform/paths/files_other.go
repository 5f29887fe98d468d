//go:build !unix

package paths

import "io/fs"

// permsMatter is false where access lists rule, which the installer sets on the
// directory.
const permsMatter = false

func checkOwner(string, fs.FileInfo) error { return nil }

// syncDir does nothing: a directory cannot be opened for flushing here.
func syncDir(string) error { return nil }
