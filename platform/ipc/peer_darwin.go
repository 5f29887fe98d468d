package ipc

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func peerOf(fd int) (Peer, error) {
	const solLocal = 0 // SOL_LOCAL of sys/un.h
	cred, err := unix.GetsockoptXucred(fd, solLocal, unix.LOCAL_PEERCRED)
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	peer := Peer{UID: cred.Uid}
	if cred.Ngroups > 0 {
		peer.GID = cred.Groups[0]
	}
	if pid, err := unix.GetsockoptInt(fd, solLocal, unix.LOCAL_PEERPID); err == nil {
		peer.PID = int32(pid)
	}
	return peer, nil
}
