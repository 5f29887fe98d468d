//go:build unix

package ipc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener is a local socket that knows who calls.
type Listener struct {
	inner *net.UnixListener
	lock  *os.File // held locked as long as the socket is served
	once  sync.Once
}

var _ net.Listener = (*Listener)(nil)

// Listen serves the socket at path with the given permissions. Its directory must
// exist. A socket left behind by a dead process is replaced; when a living one
// serves it the error is [ErrInUse].
//
// The guard is a lock on a file beside the socket: the kernel drops it with the
// process, so neither a crash nor two starts at once confuse it.
func Listen(ctx context.Context, path string, perm fs.FileMode) (*Listener, error) {
	lock, err := acquire(path + ".lock")
	if err != nil {
		return nil, err
	}
	inner, err := bind(ctx, path, perm)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Listener{inner: inner, lock: lock}, nil
}

// Accept waits for the next caller whose credentials the kernel gives.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.inner.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := credentials(conn)
		if err != nil {
			_ = conn.Close() // who cannot be named is not served
			continue
		}
		return &Conn{Conn: conn, peer: peer}, nil
	}
}

// Close stops listening, removes the socket and lets the next process serve it.
// It may be called twice.
func (l *Listener) Close() error {
	var err error
	l.once.Do(func() { err = errors.Join(l.inner.Close(), l.lock.Close()) })
	return err
}

// Addr gives the address of the socket.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock local socket: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(ErrInUse, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock local socket: %w", err), f.Close())
	}
	return f, nil
}

// bind replaces what a dead process left. The caller holds the lock.
func bind(ctx context.Context, path string, perm fs.FileMode) (*net.UnixListener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("check local socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is not a socket", path)
	default:
		if err := replaceable(ctx, path); err != nil {
			return nil, err
		}
	}
	return listenUnix(path, perm)
}

// replaceable removes the socket unless somebody without our lock answers on it.
func replaceable(ctx context.Context, path string) error {
	conn, err := Dial(ctx, path)
	if err == nil {
		_ = conn.Close()
		return ErrInUse
	}
	if !errors.Is(err, ErrNotRunning) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}

func listenUnix(path string, perm fs.FileMode) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on local socket: %w", err)
	}
	if err := os.Chmod(path, perm); err != nil {
		return nil, errors.Join(fmt.Errorf("set permissions of local socket: %w", err), l.Close())
	}
	return l, nil
}

func credentials(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var peer Peer
	var credErr error
	if err := raw.Control(func(fd uintptr) { peer, credErr = peerOf(int(fd)) }); err != nil {
		return Peer{}, err
	}
	return peer, credErr
}

func isNotRunning(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}
