//go:build linux

package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Conn is a connection. If the client bound its own socket, it also owns the
// file of that socket, and Close removes that file.
type Conn struct {
	net.Conn
	sotype Type
	name   *file
	close  sync.Once
	creds  bool // PassCred is on
}

// NewConn makes a Conn of another connection of package net, a TCP connection
// for example. It has the type that its caller says.
func NewConn(c net.Conn, t Type) *Conn { return &Conn{Conn: c, sotype: t} }

// Type returns the type of the socket.
func (c *Conn) Type() Type { return c.sotype }

// Close closes the connection and removes the client's own socket file. It
// does so only once: after that, another connection may have the name, and
// another file the inode.
func (c *Conn) Close() error {
	c.close.Do(c.name.remove)
	return c.Conn.Close()
}

// CloseWrite ends the stream towards the server, shutdown(2) with SHUT_WR: the
// server reads end of file, and the client still receives the server's
// answers.
func (c *Conn) CloseWrite() error {
	w, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}

// SyscallConn gives access to the descriptor, [syscall.Conn].
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}

// Detach returns a non-blocking descriptor of the connection. The caller
// closes it. Package net no longer reads or writes the connection. Close still
// removes the client's own socket file.
func (c *Conn) Detach() (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctrlErr := raw.Control(func(theirs uintptr) {
		fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(ctrlErr, os.NewSyscallError("fcntl", err)); err != nil {
		return -1, err
	}
	return fd, c.Conn.Close() // Close removes the client's name later
}

// Closed reports [HungUp] of the connection.
func (c *Conn) Closed() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	err = raw.Control(func(fd uintptr) { closed = HungUp(int(fd)) })
	return closed || err != nil
}

// GrowSendBuffer makes SO_SNDBUF at least n bytes, as the kernel counts them, or
// as many of them as the system allows, socket(7).
func (c *Conn) GrowSendBuffer(n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if limit, err := SendLimit(int(fd)); err == nil && limit+Overhead < n {
			_ = SetSendBuffer(int(fd), n)
		}
	})
}

// Send sends a message over a connection, whole or not at all. A message larger
// than [SendLimit] gets a [SizeError].
func (c *Conn) Send(message []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	waitErr := raw.Write(func(fd uintptr) bool {
		err = ExplainSize(int(fd), len(message), ReplyTo(int(fd), message, ""))
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		return waitErr
	}
	return err
}

// Receive receives the next message of a connection; io.EOF means that it has
// ended.
func (c *Conn) Receive(r *Receiver) (message []byte, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var end bool
	waitErr := raw.Read(func(fd uintptr) bool {
		if c.sotype != Seqpacket {
			message, err = r.Receive(int(fd))
			return err != unix.EAGAIN
		}
		if !c.creds {
			if err = PassCred(int(fd)); err != nil {
				return true
			}
			c.creds = true
		}
		message, end, err = r.receiveRecord(int(fd))
		return err != unix.EAGAIN
	})
	switch {
	case waitErr != nil:
		return nil, waitErr
	case end:
		return nil, io.EOF
	}
	return message, err
}
