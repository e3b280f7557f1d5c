//go:build linux

package sock

import (
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

// NetPacketConn makes a connection of package net from a copy of fd, a
// datagram socket, which the caller still has to close.
func NetPacketConn(fd int) (*net.UnixConn, error) {
	f, err := duplicate(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
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
	f := os.NewFile(uintptr(n), "connection")
	defer func() { _ = f.Close() }() // FileConn duplicates it
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
