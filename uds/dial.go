package uds

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// DialConfig says how to connect. Its zero value works.
type DialConfig struct {
	// Bind names the client's own socket, so that the server can tell it from
	// others and answer its datagrams. Empty: the client has no name. See
	// [AutoName].
	Bind string
	// Control, if there is one, sets options of the socket before it connects.
	Control func(fd int) error
}

// A Conn is a connection and, where the client bound one, the file of its own
// socket, which Close removes.
type Conn struct {
	net.Conn
	addr  Addr
	name  *file
	close sync.Once
}

// Dial connects to an address, TYPE:PATH as [ParseAddr] reads it. The error is the kernel's errno, for errors.Is, with the
// address and the cure: ENOENT and ECONNREFUSED where no server is, EAGAIN
// where its backlog is full (connect(2) on a non-blocking AF_UNIX socket does
// not wait), EACCES without write permission on the socket file, EPROTOTYPE
// where it is of another type.
func Dial(ctx context.Context, address string, c DialConfig) (*Conn, error) {
	a, err := ParseAddr(address)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", a, err)
	}
	return conn, nil
}

func (c DialConfig) dial(ctx context.Context, a Addr) (*Conn, error) {
	if err := checkPath(a.Path); err != nil {
		return nil, err
	}
	var name *file
	// Package net closes the socket itself where it cannot connect: this second
	// descriptor keeps it open until its file is gone, see [file.remove].
	keep := -1
	defer closeFD(&keep)
	conn, err := dialer(func(fd int) (err error) {
		if c.Control != nil {
			err = c.Control(fd)
		}
		if err != nil || c.Bind == "" {
			return err
		}
		if keep, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		name, err = bindClient(fd, c.Bind)
		return err
	}).DialContext(ctx, a.Network(), a.Path)
	if err == nil && name != nil {
		err = name.chmod(clientMode)
	}
	if err != nil {
		name.remove()
		if conn != nil {
			_ = conn.Close()
		}
		var own *ownError
		if errors.As(err, &own) {
			return nil, own
		}
		return nil, Explain(a.Path, err)
	}
	return &Conn{Conn: conn, addr: a, name: name}, nil
}

// dialer has prepare see to a socket before it connects.
func dialer(prepare func(fd int) error) *net.Dialer {
	return &net.Dialer{ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
		var err error
		ctrlErr := raw.Control(func(fd uintptr) { err = prepare(int(fd)) })
		return errors.Join(ctrlErr, err)
	}}
}

// The server may run as another user and must be able to write to the client's
// socket. Nobody else profits: a connected datagram socket takes messages from
// its peer only, connect(2). Until it is connected, it is closed to others.
const clientMode, unconnectedMode fs.FileMode = 0o666, 0o600

func bindClient(fd int, path string) (*file, error) {
	if err := checkPath(path); err != nil {
		return nil, &ownError{path, err}
	}
	if isAbstract(path) {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return nil, &ownError{path, err}
		}
		return nil, nil
	}
	f, err := bindFile(fd, path, unconnectedMode)
	if err != nil {
		return nil, &ownError{path, err}
	}
	return f, nil
}

// An ownError is about the client's own socket, not the server's.
type ownError struct {
	path string
	err  error
}

func (e *ownError) Error() string {
	return fmt.Sprintf("bind the client's own name %s: %v", e.path, e.err)
}
func (e *ownError) Unwrap() error { return e.err }

// Type is the type of the socket.
func (c *Conn) Type() Type { return c.addr.Type }

// Close closes the connection and removes the client's own socket file: once,
// as another connection may have the name after that, and the file the inode.
func (c *Conn) Close() error {
	c.close.Do(c.name.remove)
	return c.Conn.Close()
}

// CloseWrite ends the stream towards the server, shutdown(2) with SHUT_WR: the
// server reads end of file, and its answers still arrive.
func (c *Conn) CloseWrite() error {
	w, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}

// AutoName makes a name for the client's own socket that no other client has:
// in directory dir, or an abstract one where dir is "@". The process id alone
// would not do, as every client is process 1 of its container; so the host
// name and a random part come with it.
func AutoName(dir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if len(host) > 12 { // enough for a container's id; sun_path is short
		host = host[:12]
	}
	name := fmt.Sprintf("client.%s.%d.%s", host, os.Getpid(), strings.ToLower(rand.Text()[:8]))
	if dir == "@" {
		return dir + name
	}
	return filepath.Join(dir, name)
}

// SyscallConn gives access to the descriptor, [syscall.Conn].
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return s.SyscallConn()
}

// NotThereYet reports whether err is that of a dial to a server that may be about
// to start, or be free soon: its path is missing or stale, or its backlog full.
func NotThereYet(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN)
}
