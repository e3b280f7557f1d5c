//go:build linux

package sock

import (
	"errors"
	"net"
	"os"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// NetListener makes a listener of package net from a copy of fd, which the
// caller still has to close.
func NetListener(fd int) (*net.UnixListener, error) {
	f, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// NetConn makes a connection of package net from a copy of fd, a socket that does
// not listen, which the caller still has to close.
func NetConn(fd int) (*net.UnixConn, error) {
	f, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	return netConn(f)
}

// netConn closes f, which package net duplicates.
func netConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Accept accepts a connection that waits at fd, for package net. The error is
// EAGAIN if there is none.
func Accept(fd int) (*net.UnixConn, error) {
	n, err := raw.Retry(func() (int, error) { return raw.Accept(fd) })
	if err != nil {
		return nil, os.NewSyscallError("accept4", err)
	}
	return netConn(os.NewFile(uintptr(n), "connection"))
}
