// Package uds is package net for Unix sockets, without its traps:
//
//	l, err := uds.Listen("unix", "/run/app/socket")       // as net.Listen: a net.Listener
//	c, err := uds.Dial("unix", "/run/app/socket")         // as net.Dial: a net.Conn
//	cred, err := uds.PeerCred(c)                          // who is at the other end: UID, GID, PID
//	err = uds.SendFiles(c, []byte("read this"), os.Stdin) // open files, to another process
//
// The networks are those of package net: "unix" for streams, "unixpacket" for
// seqpacket, messages over a connection, and "unixgram" for datagrams. An
// address is a path, or @NAME for an abstract name of Linux. Also accepted are
// unix:PATH and unix:///PATH, as gRPC writes paths.
//
// Listening is what is easy to get wrong. The contract is:
//
//   - a file at the path that is not a socket is never removed;
//   - a socket that a server still serves is an error, a stale one is replaced;
//   - if two servers start at once, exactly one wins, even in different
//     containers: the lock is an flock(2) beside the socket, not a process id;
//   - the socket file is never more open than requested;
//   - closing removes only the file that this listener made, even after the
//     process has changed its directory;
//   - a new server can take the socket over from the running one, without
//     refusing a client, see [ListenConfig].
//
// Connections, also accepted ones, are *[net.UnixConn], or embed one. Errors
// are *[net.OpError], contain the kernel's errno for errors.Is, and name the
// cure.
//
// The package is complete on Linux, where its tests run. On other systems the
// same names compile. There package net, flock(2) and connecting to the path
// do what they can, and what they cannot is [errors.ErrUnsupported]: taking
// over everywhere, and descriptors and credentials on Windows. That code is
// tested on Linux, with the build tag uds_portable.
package uds

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/udsecho/udsecho/uds/sock"
)

// Errors to distinguish with errors.Is. Each comes in an error that names the
// address and the cure.
var (
	// ErrAddress means that the address cannot be valid: it is empty, longer
	// than [MaxPath], or has a NUL byte.
	ErrAddress = sock.ErrAddress
	// ErrInUse means that a running server has the address. It is also an
	// EADDRINUSE to errors.Is.
	ErrInUse = sock.ErrInUse
	// ErrNotSocket means that the file at the path is not a socket.
	ErrNotSocket = sock.ErrNotSocket
	// ErrDescriptors means that a message came with more descriptors than
	// allowed. They are all closed.
	ErrDescriptors = sock.ErrDescriptors
	// ErrOpenFiles means that a message's descriptors could not be received,
	// because this process has reached its limit of open files. Those that
	// did arrive are closed.
	ErrOpenFiles = sock.ErrOpenFiles
	// ErrTruncated means that a message is larger than the buffer. The bytes in
	// the buffer are only its start.
	ErrTruncated = sock.ErrTruncated
)

// MaxPath is the largest number of bytes in a path: sun_path also holds the
// closing NUL, unix(7), "Address format". It is 107 on Linux and 103 on BSD and
// macOS. A longer path can be reached through a relative one.
const MaxPath = sock.MaxPath

// where returns the path of an address, or its abstract name.
func where(address string) (path string, err error) {
	path = address
	if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		path = rest
		if rest, ok = strings.CutPrefix(rest, "//"); ok {
			if path = rest; !strings.HasPrefix(rest, "/") {
				return "", fmt.Errorf("%w %q: after unix:// comes an absolute path; write unix:///%s or unix:%s", ErrAddress, address, rest, rest)
			}
		}
	}
	return path, sock.CheckPath(path)
}

// opError returns err as package net would, with the address.
func opError(op, network, address string, err error) error {
	if err == nil || errors.As(err, new(*net.OpError)) {
		return err
	}
	return &net.OpError{Op: op, Net: network, Addr: &net.UnixAddr{Name: address, Net: network}, Err: cause{err}}
}

// A cause is an error in a *net.OpError, which asks it for these methods.
type cause struct{ error }

func (c cause) Unwrap() error { return c.error }

func (c cause) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(c.error, &t) && t.Timeout()
}

func (c cause) Temporary() bool {
	var t interface{ Temporary() bool }
	return errors.As(c.error, &t) && t.Temporary()
}

// netConn returns the connection below wrappers such as *tls.Conn.
func netConn(c net.Conn) net.Conn {
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = w.NetConn()
	}
}

// rawConn returns the descriptor of a connection.
func rawConn(op string, c net.Conn) (syscall.RawConn, error) {
	s, ok := netConn(c).(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%s: %T is not a Unix socket's connection: %w", op, c, errors.ErrUnsupported)
	}
	return s.SyscallConn()
}
