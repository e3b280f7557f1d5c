//go:build !linux && !darwin && !freebsd

package uds

import (
	"errors"
	"fmt"
	"net"
	"runtime"
)

func peerCred(net.Conn) (Cred, error) {
	return Cred{}, fmt.Errorf("peer credentials on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
