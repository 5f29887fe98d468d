//go:build !unix

package daemon

import "os"

func stopSignals() []os.Signal { return []os.Signal{os.Interrupt} }
