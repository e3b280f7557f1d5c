package uds

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
)

const errRefused = syscall.Errno(10061) // WSAECONNREFUSED

func isSocket(mode fs.FileMode) bool { return mode&(fs.ModeSocket|fs.ModeIrregular) != 0 }

func pair() (*net.UnixConn, *os.File, error) {
	return nil, nil, fmt.Errorf("socketpair on Windows: %w", errors.ErrUnsupported)
}

func sendFiles(net.Conn, []byte, []*os.File) error {
	return fmt.Errorf("descriptors on Windows: %w", errors.ErrUnsupported)
}

func receiveFiles(net.Conn, []byte, int) (int, []*os.File, error) {
	return 0, nil, fmt.Errorf("descriptors on Windows: %w", errors.ErrUnsupported)
}
