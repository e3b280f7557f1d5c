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
	if err := c.control(func(theirs int) error {
		fd, err = unix.FcntlInt(uintptr(theirs), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl", err)
	}); err != nil {
		return -1, err
	}
	return fd, c.Conn.Close() // Close removes the client's name later
}

// control calls f with the descriptor.
func (c *Conn) control(f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	ctrlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(ctrlErr, err)
}

// Closed reports [HungUp] of the connection.
func (c *Conn) Closed() (closed bool) {
	err := c.control(func(fd int) error { closed = HungUp(fd); return nil })
	return closed || err != nil
}

// GrowSendBuffer makes SO_SNDBUF at least n bytes, as the kernel counts them, or
// as many of them as the system allows, socket(7).
func (c *Conn) GrowSendBuffer(n int) {
	_ = c.control(func(fd int) error {
		if limit, err := SendLimit(fd); err == nil && limit+Overhead < n {
			_ = SetSendBuffer(fd, n)
		}
		return nil
	})
}

// Send sends a message over a connection, whole or not at all. A message larger
// than [SendLimit] gets a [SizeError].
func (c *Conn) Send(message []byte) error {
	return c.send(func(fd int) error { return ExplainSize(fd, len(message), ReplyTo(fd, message, "")) })
}

// SendFiles sends a message with descriptors, see [SendFiles]. It waits for room;
// a stream may still take only a part of a large message.
func (c *Conn) SendFiles(message []byte, fds ...int) error {
	return c.send(func(fd int) error {
		_, err := SendFiles(fd, message, fds, "")
		return err
	})
}

// send calls f, again when there is room if it returns EAGAIN.
func (c *Conn) send(f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	waitErr := raw.Write(func(fd uintptr) bool {
		err = f(int(fd))
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
