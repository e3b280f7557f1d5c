//go:build linux

package sock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pair makes two connected stream sockets without an address, socketpair(2)
// and unix(7), "unnamed": one for this process, the other for a child to
// inherit. Both are closed on exec; package exec passes the other one on to
// the child. This process has to close its copy of the other one, otherwise it
// never reads end of file.
func Pair() (own *Conn, other *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w (%s)", err, unix.ErrnoName(err.(unix.Errno)))
	}
	first, second := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	conn, err := netConn(first)
	if err != nil {
		return nil, nil, errors.Join(err, second.Close())
	}
	return &Conn{Conn: conn, sotype: Stream}, second, nil
}
