package storetest

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// server is a PostgreSQL server that dies with this process.
type server struct {
	dsn string
	dir string
	cmd *exec.Cmd
}

// startServer makes a cluster in a temporary directory and starts the server on a Unix
// socket in it. The server refuses to run as root, so there it runs as user postgres.
func startServer() (_ *server, err error) {
	bin, err := findBinaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pgtest")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	attr, err := attributes(dir)
	if err != nil {
		return nil, err
	}
	if err := initCluster(bin, dir, attr); err != nil {
		return nil, err
	}
	return s, s.start(bin, attr)
}

// findBinaries returns the directory of the newest installed server.
func findBinaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return "", errors.New("initdb not found in /usr/lib/postgresql/*/bin and PATH")
	}
	return filepath.Dir(slices.Max(found)), nil
}

// attributes returns how the server is started: as user postgres when we are root, and
// killed when we die. It gives dir to that user.
func attributes(dir string) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr, os.Chown(dir, int(uid), int(gid))
}

func initCluster(bin, dir string, attr *syscall.SysProcAttr) error {
	cmd := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"),
		"--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust", "--username=postgres")
	cmd.Dir, cmd.SysProcAttr = dir, attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// start runs the server and returns when it accepts connections.
func (s *server) start(bin string, attr *syscall.SysProcAttr) error {
	runtime.LockOSThread() // Pdeathsig means the death of the starting thread
	s.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", filepath.Join(s.dir, "data"), "-k", s.dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=300", "-c", "shared_buffers=16MB",
		"-c", "logging_collector=off", "-c", "log_min_messages=log")
	s.cmd.Dir, s.cmd.SysProcAttr = s.dir, attr
	out, err := s.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.dsn = "postgres://postgres@/postgres?" + url.Values{"host": {s.dir}, "sslmode": {"disable"}}.Encode()
	return awaitReady(bufio.NewScanner(out))
}

// awaitReady reads the server's log up to the line that says that it is ready, and keeps
// emptying the pipe after that until the server ends.
func awaitReady(log *bufio.Scanner) error {
	var seen []string
	for log.Scan() {
		if strings.Contains(log.Text(), "ready to accept connections") {
			go func() {
				for log.Scan() { // the server blocks on a full pipe
				}
			}()
			return nil
		}
		seen = append(seen, log.Text())
	}
	return fmt.Errorf("the server ended: %s", strings.Join(seen, "; "))
}

// stop ends the server and removes its files.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // it may be gone already
	_ = s.cmd.Wait()                          // ends with an error after SIGQUIT
	_ = os.RemoveAll(s.dir)                   // a rest in the temporary directory does no harm
}
