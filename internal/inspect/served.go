package inspect

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/uds/sock"
	"github.com/udsecho/udsecho/uds/sock/why"
)

// Served returns nil if a process serves the socket at a path or an abstract
// name, otherwise why not, with a cure. Without accept it asks sock_diag(7) first,
// so that a server in this network namespace sees no client. Otherwise, and
// without permission to connect, it connects and closes at once. accept may reject
// the process that listens, which is not known for datagram sockets.
func Served(path string, accept func(unix.Ucred) error) error {
	name, is := path, func(s why.Socket) bool { return s.IsAbstract(path) }
	if !sock.IsAbstract(path) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return sock.Explain(path, err)
		}
		defer func() { _ = unix.Close(fd) }()
		// The file that is inspected stays the same, even if the name changes.
		name, is = fmt.Sprintf("/proc/self/fd/%d", fd), why.IsFile(fd)
	}
	if accept == nil && (sock.IsAbstract(path) || unix.Faccessat(unix.AT_FDCWD, name, unix.W_OK, unix.AT_EACCESS) == nil) {
		all, _ := why.Sockets()
		if slices.ContainsFunc(all, func(s why.Socket) bool { return is(s) && s.Serves() && s.State != why.Established }) {
			return nil
		}
	}
	_, err := sock.Probe(name, func(t sock.Type, fd int) error {
		if accept == nil {
			return nil
		}
		if t == sock.Datagram {
			return errors.New("for datagram sockets, the kernel does not report who serves; leave out --require-uid and --require-gid")
		}
		cred, err := sock.PeerCred(fd)
		if err == nil {
			err = accept(*cred)
		}
		return err
	})
	switch {
	case err == nil, err == unix.EAGAIN && accept == nil: // its backlog is full
		return nil
	case err == sock.ErrBound:
		err = unix.ECONNREFUSED
	}
	return sock.Explain(path, err)
}
