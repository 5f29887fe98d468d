//go:build !linux

package storetest

import "errors"

type server struct{ dsn string }

func startServer() (*server, error) {
	return nil, errors.ErrUnsupported
}

func (s *server) stop() {}
