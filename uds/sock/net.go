package sock

import (
	"errors"
	"net"
	"os"
	"sync"

	"github.com/udsecho/udsecho/uds/sock/raw"
)

// Listener hands a stream or seqpacket socket to package net. The listener
// takes over the socket: closing the listener closes the socket.
func (s *Socket) Listener() (net.Listener, error) {
	inner, err := NetListener(s.fd)
	if err != nil {
		return nil, err
	}
	return &listener{UnixListener: inner, socket: s}, nil
}

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

// A listener also removes the socket file, which package net does not know
// about.
type listener struct {
	*net.UnixListener
	socket *Socket
	close  sync.Once
}

func (l *listener) Close() (err error) {
	l.close.Do(func() { err = errors.Join(l.UnixListener.Close(), l.socket.Close()) })
	return err
}
