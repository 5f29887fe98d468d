//go:build unix && !linux && !darwin

package ipc

import "errors"

func peerOf(int) (Peer, error) { return Peer{}, errors.ErrUnsupported }
