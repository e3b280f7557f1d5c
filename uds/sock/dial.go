//go:build linux

package sock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialConfig configures how to connect. Its zero value works.
type DialConfig struct {
	// Bind names the client's own socket, so that the server can distinguish
	// it from other clients and answer its datagrams. If it is empty, the
	// client has no name. See [AutoName].
	Bind string
	// SendBuffer is as in [ListenConfig].
	SendBuffer int
	// Control, if not nil, sets options of the socket before it connects.
	Control func(fd int) error
}

// Dial connects to an address. The error wraps the kernel's errno, for errors.Is,
// and names the address and the cure:
//
//	ENOENT, ECONNREFUSED  no server is there
//	EAGAIN                the server's backlog is full; connect(2) on a non-blocking AF_UNIX socket does not wait
//	EACCES                no write permission on the socket file, or not yet, see [NotThereYet]
//	EPROTOTYPE            the socket is of another type
func Dial(ctx context.Context, a Addr, c DialConfig) (*Conn, error) {
	conn, err := c.Dial(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", a, err)
	}
	return conn, nil
}

// Dial is [Dial] without the address in its errors.
func (c DialConfig) Dial(ctx context.Context, a Addr) (*Conn, error) {
	if err := CheckPath(a.Path); err != nil {
		return nil, err
	}
	var name *file
	// Package net closes the socket itself if it cannot connect. This second
	// descriptor keeps the socket open until its file is removed, see
	// [file.remove].
	keep := -1
	defer closeFD(&keep)
	conn, err := dialer(func(fd int) (err error) {
		if c.SendBuffer > 0 {
			err = SetSendBuffer(fd, c.SendBuffer)
		}
		if err == nil && c.Control != nil {
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
		explained := Explain(a.Path, err)
		if errors.Is(err, unix.EACCES) && justChanged(a.Path) {
			return nil, settling{explained}
		}
		return nil, explained
	}
	return &Conn{Conn: conn, sotype: a.Type, name: name}, nil
}

// Connect connects with system calls alone, for callers that need only the
// descriptor and make many connections. It does not wait, and its error is a bare
// errno; [Dial] explains its errors. Of c it uses Control.
func (c DialConfig) Connect(a Addr) (fd int, err error) {
	if fd, err = socket(a.Type); err != nil {
		return -1, err
	}
	if c.Control != nil {
		err = c.Control(fd)
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: a.Path})
	}
	if err != nil {
		closeFD(&fd)
	}
	return fd, err
}

// dialer returns a dialer that calls prepare with the socket before it
// connects.
func dialer(prepare func(fd int) error) *net.Dialer {
	return &net.Dialer{ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
		var err error
		ctrlErr := raw.Control(func(fd uintptr) { err = prepare(int(fd)) })
		return errors.Join(ctrlErr, err)
	}}
}

// The server may run as another user and must be able to write to the client's
// socket. This opens the socket to the server only: a connected datagram
// socket accepts messages from its peer alone, connect(2). Before it is
// connected, its mode keeps other users out.
const clientMode, unconnectedMode fs.FileMode = 0o666, 0o600

func bindClient(fd int, path string) (*file, error) {
	if err := CheckPath(path); err != nil {
		return nil, &ownError{path, err}
	}
	if IsAbstract(path) {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return nil, &ownError{path, err}
		}
		return nil, nil
	}
	f, err := bindFile(fd, path, unconnectedMode, nil)
	if err != nil {
		return nil, &ownError{path, err}
	}
	return f, nil
}

// An ownError is an error of the client's own socket, not of the server's.
type ownError struct {
	path string
	err  error
}

func (e *ownError) Error() string {
	return fmt.Sprintf("bind the client's own name %s: %v", e.path, e.err)
}
func (e *ownError) Unwrap() error { return e.err }

// NotThereYet reports whether a dial failed with err because the server may
// still be starting or may be briefly busy: its path is missing or stale, its
// socket does not listen yet, or its backlog is full. A server may also be
// setting the mode and the owner of its new file. So EACCES counts if the file,
// or the directory if that hides the file, has changed within the last second.
func NotThereYet(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN) || errors.As(err, new(settling))
}

// A settling error is an EACCES that may end by itself.
type settling struct{ error }

func (e settling) Unwrap() error { return e.error }

func justChanged(path string) bool {
	for _, p := range []string{path, filepath.Dir(path)} {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			return time.Since(time.Unix(st.Ctim.Unix())).Abs() < time.Second
		}
	}
	return false
}
